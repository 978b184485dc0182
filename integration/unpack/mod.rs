//! Full layers: entries of every kind, layers of other tools, hostile tars, and the confined child. As root.

mod child;
mod entries;
mod golden;
mod hostile;
mod order;
pub(crate) mod snapshot;

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use supervisor::image::{Compression, Digest};
use supervisor::unpack::{UnpackError, UnpackInput, Unpacked, unpack_layer};

/// A staging directory with a guarded neighbourhood: `<temp>/outside` must never change.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "run as root: layers hold owners and devices"
        );
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("staging")).unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        std::fs::write(dir.path().join("outside/secret"), b"secret").unwrap();
        Self { dir }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("staging")
    }

    fn outside(&self) -> PathBuf {
        self.dir.path().join("outside")
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    fn unpack(&self, blob: &[u8], input: &UnpackInput) -> Result<Unpacked, UnpackError> {
        let directory = std::fs::File::open(self.root()).unwrap();
        let outcome = unpack_layer(blob, input, directory.as_fd());
        self.assert_nothing_outside();
        outcome
    }

    /// Nothing but the staging directory was touched.
    fn assert_nothing_outside(&self) {
        let names = |path: &Path| {
            let mut names: Vec<_> =
                std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(self.dir.path()), ["outside", "staging"]);
        assert_eq!(names(&self.outside()), ["secret"]);
        let secret = self.outside().join("secret");
        assert_eq!(std::fs::read(&secret).unwrap(), b"secret");
        let metadata = std::fs::metadata(secret).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::nlink(&metadata), 1);
    }
}

/// What an honest manifest says of `blob`.
fn input(blob: &[u8], compression: Compression) -> UnpackInput {
    let size = u64::try_from(blob.len()).unwrap();
    UnpackInput { compression, digest: Digest::of(blob), size, diff_id: None }
}

/// Unpacks a tar that needs no more than an honest manifest.
fn unpack(tar: &[u8]) -> Result<(Place, Unpacked), UnpackError> {
    let place = Place::new();
    let unpacked = place.unpack(tar, &input(tar, Compression::None))?;
    Ok((place, unpacked))
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}
