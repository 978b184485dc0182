//! Reads that somebody is about to make: begun before he does, because he makes them one after the other.
//!
//! A path is looked up as the file system above the layers does. A program that is a script names another one, which is
//! read next. Known are the layers that this engine serves: what one that is unpacked, or has a connection of its own,
//! hides of them is fetched in vain, and what only such a layer has is not found.

use std::sync::Arc;
use std::time::Duration;

use super::layer::LazyLayer;
use super::named::{Lookups, file_in};
use crate::estargz::EntryNo;

/// What of a program is looked at: the kernel takes no more as the line that names an interpreter.
const HEAD: u32 = 256;
/// Scripts whose interpreter is a script, as many as the kernel follows.
const SCRIPTS: u32 = 4;
/// Where `env` looks in most images.
const FOLDERS: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin"];
/// So long a start that waits for what is fetched ahead waits for one of these reads.
const PATIENCE: Duration = Duration::from_secs(10);

/// The layers of an image, the uppermost first.
type Stack = Arc<[Arc<LazyLayer>]>;

impl LazyLayer {
    /// Reads the beginning of files of an image with these `layers`, the uppermost first, because somebody is about to:
    /// of each list in `wanted` the first path that is a file. What is fetched along is what his own read would bring.
    /// Counts as a prefetch of the layers that have these files. Looks at indexes, which may block.
    pub fn expect(layers: Vec<Arc<Self>>, wanted: &[Vec<String>]) {
        if layers.iter().all(|layer| layer.is_complete()) {
            return;
        }
        begin(&layers.into(), wanted, SCRIPTS);
    }
}

fn begin(stack: &Stack, wanted: &[Vec<String>], scripts: u32) {
    let layers: Vec<&LazyLayer> = stack.iter().map(|layer| &**layer).collect();
    let mut lookups = Lookups::default();
    for paths in wanted {
        let file = |path: &String| file_in(&layers, path.as_bytes(), &mut lookups);
        let Some((layer, entry)) = paths.iter().find_map(file) else { continue };
        read(stack, &stack[layer], entry, scripts);
    }
}

/// Somebody may wait for the end of what is fetched ahead, until this is dropped.
struct Prefetching(Arc<LazyLayer>);

impl Prefetching {
    fn begin(layer: &Arc<LazyLayer>) -> Self {
        layer.fill.prefetches.send_modify(|running| *running += 1);
        Self(Arc::clone(layer))
    }
}

impl Drop for Prefetching {
    fn drop(&mut self) {
        self.0.fill.prefetches.send_modify(|running| *running -= 1);
    }
}

/// Reads the beginning of `entry`, and of who interprets it.
fn read(stack: &Stack, layer: &Arc<LazyLayer>, entry: EntryNo, scripts: u32) {
    // What the maker of the layer marked has this too, in fewer requests.
    if !layer.is_complete() && layer.prefetch_numbers().is_some() {
        return;
    }
    let prefetching = Prefetching::begin(layer);
    let (stack, layer) = (Arc::clone(stack), Arc::clone(layer));
    let runtime = layer.shared.runtime.clone();
    runtime.clone().spawn(async move {
        let _prefetching = prefetching;
        // Whoever comes to read it is told what goes wrong.
        let head = tokio::time::timeout(PATIENCE, layer.read(entry, 0, HEAD)).await;
        let (Ok(Ok(head)), Some(left)) = (head, scripts.checked_sub(1)) else { return };
        let wanted = interpreter(&head);
        if !wanted.is_empty() {
            let _ = runtime.spawn_blocking(move || begin(&stack, &wanted, left)).await;
        }
    });
}

/// What the kernel reads next of a program that is a script, each with where it may be.
fn interpreter(head: &[u8]) -> Vec<Vec<String>> {
    let Some(line) = head.strip_prefix(b"#!") else { return Vec::new() };
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split_whitespace();
    let Some(path) = words.next() else { return Vec::new() };
    let mut wanted = vec![vec![path.to_owned()]];
    // Behind options and variables.
    let name = words.find(|word| !word.starts_with('-') && !word.contains('='));
    if let (true, Some(name)) = (path.ends_with("/env"), name) {
        wanted.push(match name.starts_with('/') {
            true => vec![name.to_owned()],
            false => FOLDERS.iter().map(|folder| format!("{folder}/{name}")).collect(),
        });
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_names_its_interpreter() {
        assert_eq!(interpreter(b"#!/bin/sh\nexec web\n"), [["/bin/sh"]]);
        assert_eq!(interpreter(b"#! /bin/bash -e\n"), [["/bin/bash"]]);
        // The kernel reads `env`, and that what it is asked for.
        let python = interpreter(b"#!/usr/bin/env -S A=b python3 -u\n");
        assert_eq!((&*python[0][0], &*python[1][1]), ("/usr/bin/env", "/usr/bin/python3"));
        assert_eq!(interpreter(b"#!/usr/bin/env /bin/sh"), [["/usr/bin/env"], ["/bin/sh"]]);
        assert_eq!(interpreter(b"#!/usr/bin/env"), [["/usr/bin/env"]]);
        for none in [&b"\x7fELF\x02"[..], b"", b"#", b"#!", b"#! \n/bin/sh"] {
            assert!(interpreter(none).is_empty());
        }
    }
}
