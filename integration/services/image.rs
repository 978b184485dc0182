//! An image that is read for a while: a shell and files whose content is known, packed by the program itself.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use supervisor::image::Digest;

use crate::support::lazy_host::noise;
use crate::support::program::Program;

/// Bytes of each file; several chunks.
const FILE_SIZE: usize = 100_000;

/// The image and what is in it.
pub(crate) struct Readable {
    /// The layout folder; its only tag is `v1`.
    pub(crate) layout: PathBuf,
    /// What `sha256sum /data/*` prints.
    pub(crate) sums: Vec<String>,
}

impl Readable {
    /// Packs an image with so many files; `seed` makes it another one.
    pub(crate) fn pack(program: &Program, seed: u64, files: usize) -> Self {
        let folder = program.folder().join(format!("image-{seed}"));
        let root = folder.join("root");
        for name in ["bin", "data", "tmp"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("Debian's busybox-static");
        for name in ["sh", "sleep", "cat", "echo", "sha256sum", "touch"] {
            symlink("busybox", root.join("bin").join(name)).unwrap();
        }
        let mut sums = Vec::new();
        for number in 0..files {
            let path = format!("data/{number:04}");
            let content = noise(seed * 10_000 + number as u64, FILE_SIZE);
            fs::write(root.join(&path), &content).unwrap();
            sums.push(format!("{}  /{path}", Digest::of(&content).hex()));
        }
        let layout = folder.join("layout");
        let target = format!("oci:{}:v1", layout.display());
        let root = root.to_str().unwrap();
        program.ok(["image", "pack", root, "-o", &target, "--level", "1", "--chunk-size", "32768"]);
        Self { layout, sums }
    }

    /// How a services file names it where it lies.
    pub(crate) fn local(&self) -> String {
        format!("oci:{}:v1", self.layout.display())
    }
}

/// Reads every file, says which sums they have, and goes on without reading.
pub(crate) const READ_ALL: &str = "trap 'exit 9' TERM; \
    for f in /data/*; do sha256sum $f || echo error $f; done; \
    echo end; while :; do sleep 0.1; done";

/// The digest of the only layer of a layout, as it stands in the path of a request.
pub(crate) fn layer_path(layout: &Path) -> String {
    let largest = fs::read_dir(layout.join("blobs/sha256"))
        .unwrap()
        .flatten()
        .max_by_key(|entry| entry.metadata().unwrap().len())
        .unwrap();
    largest.file_name().into_string().unwrap()
}
