//! The tree without a kernel.

use std::collections::BTreeMap;

use futures_util::FutureExt as _;

use super::*;

/// A root with a directory `d` (opaque) that has a file `f`, and a link `l`.
struct Small;

impl Layer for Small {
    fn attributes(&self, entry: u32) -> Option<Entry> {
        let kind = match entry {
            0 | 1 => EntryKind::Directory,
            2 => EntryKind::Regular,
            3 => EntryKind::Symlink,
            _ => return None,
        };
        Some(Entry { kind, opaque: entry == 1, ..plain_directory(0) })
    }

    fn lookup(&self, dir: u32, name: &[u8]) -> Option<u32> {
        (0..).map_while(|n| self.child(dir, n)).find(|(child, _)| *child == name).map(|(_, e)| e)
    }

    fn child(&self, dir: u32, place: u32) -> Option<(&[u8], u32)> {
        let children: &[(&[u8], u32)] = match dir {
            0 => &[(b"d", 1), (b"l", 3)],
            1 => &[(b"f", 2)],
            _ => &[],
        };
        children.get(place as usize).copied()
    }

    fn parent(&self, entry: u32) -> u32 {
        u32::from(entry == 2)
    }

    fn link_target(&self, _: u32) -> &[u8] {
        b"d/f"
    }

    fn xattr(&self, entry: u32, name: &[u8]) -> Option<Vec<u8>> {
        (entry == 2 && name == b"user.x").then(|| b"1".to_vec())
    }

    fn xattr_names(&self, entry: u32) -> Vec<Vec<u8>> {
        // A layer that smuggles an attribute past the reader of its table of contents.
        let names = vec![b"user.x".to_vec(), b"trusted.overlay.redirect".to_vec()];
        if entry == 2 { names } else { Vec::new() }
    }

    fn content_size(&self) -> u64 {
        10
    }

    fn closed(&self, _: u32) {}

    fn open_local(&self, _: u32) -> Result<Option<Opened>, Refusal> {
        Ok(Some(Opened::Partial))
    }

    fn open(self: Arc<Self>, _: u32) -> BoxFuture<'static, Result<Opened, Refusal>> {
        async { Ok(Opened::Partial) }.boxed()
    }

    fn first_content(&self, _: u32) -> Option<Bytes> {
        None
    }

    fn read_local(&self, _: u32, _: u64, _: u32) -> Result<Option<Bytes>, Refusal> {
        Ok(None)
    }

    fn read(self: Arc<Self>, _: u32, _: u64, _: u32) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        async { Ok(Bytes::new()) }.boxed()
    }
}

fn tree() -> (Tree, Digest) {
    let tree = Tree::new(OpaqueXattr::Trusted, Xattrs::Served);
    let digest = Digest::of(b"layer");
    tree.insert(3, digest, Arc::new(Small));
    (tree, digest)
}

fn names(tree: &Tree, ino: u64, from: u64) -> BTreeMap<Vec<u8>, u64> {
    let mut found = BTreeMap::new();
    tree.list(ino, from, |line| {
        found.insert(line.name, line.ino);
        false
    })
    .unwrap();
    found
}

#[test]
fn inodes_carry_slot_and_entry() {
    let (tree, digest) = tree();
    let dir = tree.lookup(ROOT, directory_name(3, digest).as_bytes()).unwrap();
    assert_eq!(dir, 3 << 32);
    let d = tree.lookup(dir, b"d").unwrap();
    let f = tree.lookup(d, b"f").unwrap();
    assert_eq!(f, 3 << 32 | 2);
    assert_eq!(tree.lookup(dir, b"nothing"), Err(Refusal::NotFound));
    assert_eq!(tree.lookup(f, b"x"), Err(Refusal::NotDirectory));
    assert_eq!(tree.lookup(ROOT, b"3-000000000000"), Err(Refusal::NotFound));
    assert_eq!(tree.lookup(ROOT, b"3"), Err(Refusal::NotFound));
    assert_eq!(tree.link_target(tree.lookup(dir, b"l").unwrap()).unwrap(), b"d/f");
    assert_eq!(tree.link_target(f), Err(Refusal::NotLink));
}

#[test]
fn a_released_slot_answers_stale_and_is_listed_no_more() {
    let (tree, digest) = tree();
    tree.remove(3);
    assert_eq!(tree.attributes(3 << 32), Err(Refusal::Released));
    assert_eq!(tree.lookup(ROOT, directory_name(3, digest).as_bytes()), Err(Refusal::NotFound));
    assert_eq!(names(&tree, ROOT, 0).len(), 2);
}

#[test]
fn the_time_of_the_root_tells_which_layers_are_listed() {
    let (tree, digest) = tree();
    let time = || tree.attributes(ROOT).unwrap().mtime;
    let one = time();
    tree.insert_broken(4, digest);
    let two = time();
    assert_ne!(one, two);
    tree.remove(3);
    assert!(![one, two].contains(&time()));
    tree.insert_broken(3, digest);
    assert_eq!(time(), two);
}

#[test]
fn a_broken_layer_is_visible_and_everything_in_it_fails() {
    let (tree, digest) = tree();
    tree.insert_broken(3, digest);
    assert!(tree.attributes(3 << 32).is_ok());
    assert_eq!(tree.lookup(3 << 32, b"d"), Err(Refusal::Broken));
    assert_eq!(tree.attributes(3 << 32 | 1), Err(Refusal::Broken));
}

#[test]
fn a_listing_goes_on_where_it_stopped() {
    let (tree, digest) = tree();
    let mut seen = Vec::new();
    let mut from = 0;
    loop {
        let mut line = None;
        tree.list(3 << 32, from, |listed| {
            line = Some(listed);
            true
        })
        .unwrap();
        let Some(listed) = line else { break };
        from = listed.next;
        seen.push(listed.name);
    }
    assert_eq!(seen, [b".".to_vec(), b"..".to_vec(), b"d".to_vec(), b"l".to_vec()]);
    let root = names(&tree, ROOT, 2);
    assert_eq!(root.into_keys().collect::<Vec<_>>(), [directory_name(3, digest).into_bytes()]);
    assert!(names(&tree, ROOT, 6).is_empty());
    assert_eq!(names(&tree, 3 << 32 | 1, 0)[&b"..".to_vec()], 3 << 32);
    assert_eq!(names(&tree, 3 << 32, 0)[&b"..".to_vec()], ROOT);
}

#[test]
fn only_one_overlay_attribute_is_ever_answered() {
    for (opaque, yes, no) in [
        (OpaqueXattr::Trusted, "trusted.overlay.opaque", "user.overlay.opaque"),
        (OpaqueXattr::User, "user.overlay.opaque", "trusted.overlay.opaque"),
    ] {
        let tree = Tree::new(opaque, Xattrs::Served);
        tree.insert(3, Digest::of(b"layer"), Arc::new(Small));
        let (d, f) = (3 << 32 | 1, 3 << 32 | 2);
        assert_eq!(tree.xattr(d, yes.as_bytes()).unwrap(), b"y");
        assert_eq!(tree.xattr(d, no.as_bytes()), Err(Refusal::NoAttribute));
        assert_eq!(tree.xattr(f, yes.as_bytes()), Err(Refusal::NoAttribute));
        assert_eq!(tree.xattr_names(d).unwrap(), format!("{yes}\0").as_bytes());
        assert_eq!(tree.xattr_names(f).unwrap(), b"user.x\0");
        assert_eq!(tree.xattr(f, b"trusted.overlay.redirect"), Err(Refusal::NoAttribute));
    }
}

#[test]
fn a_mount_without_attributes_says_so_of_every_inode() {
    let tree = Tree::new(OpaqueXattr::Trusted, Xattrs::Absent);
    tree.insert(3, Digest::of(b"layer"), Arc::new(Small));
    for ino in [ROOT, 3 << 32, 3 << 32 | 2] {
        let asked = tree.xattr(ino, b"trusted.overlay.metacopy");
        assert_eq!(asked, Err(Refusal::NoAttributes));
    }
}
