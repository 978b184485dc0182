//! A folder into an image of one lazy layer, over an optional base. Blocking.
//!
//! The same folder and settings give the same bytes: no clock is read, names are sorted, everything belongs to root.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::encode::encode;
use super::manifest::{finish, with_diff_ids};
use super::{EncodeError, FolderError, Layout, LayoutError, Made, write_tar};
use crate::estargz::WriterOptions;
use crate::image::{ImageRef, Platform};

/// How the packed image wants to be run, and how it is written.
#[derive(Debug, Clone, Default)]
pub struct PackOptions {
    /// Comes before the command.
    pub entrypoint: Vec<String>,
    /// The default command.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Where processes start.
    pub working_dir: Option<String>,
    /// `user`, `uid`, `user:group` …
    pub user: Option<String>,
    /// Asks for a clean stop.
    pub stop_signal: Option<String>,
    /// `port/protocol`, for information.
    pub exposed_ports: Vec<String>,
    /// Free-form.
    pub labels: BTreeMap<String, String>,
    /// Seconds since 1970: when the image was made, and what no file's time exceeds. Without it the files keep their
    /// times and the image has none.
    pub source_date_epoch: Option<u64>,
    /// Chunks, compression, and what is fetched first.
    pub writer: WriterOptions,
}

/// Why a folder could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// Images are written into layout folders only.
    #[error("`{0}` is not an image layout; write to `oci:DIR[:TAG]`")]
    Target(ImageRef),
    /// The folder holds something that cannot be read or carried.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The layer could not be written.
    #[error("could not write the layer of `{folder}`")]
    Encode {
        /// What is packed.
        folder: PathBuf,
        /// Why.
        #[source]
        source: EncodeError,
    },
    /// A time that no calendar has.
    #[error("{0} seconds after 1970 is no time that can be written")]
    Time(u64),
    /// The layout could not be written.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

/// Packs `folder` as an image for `platform` into the layout that `target` names.
///
/// # Errors
/// When the folder cannot be read, holds something that an image cannot carry, or the target cannot be written.
pub fn pack(
    folder: &Path,
    platform: &Platform,
    target: &ImageRef,
    options: &PackOptions,
) -> Result<Made, PackError> {
    let ImageRef::Layout { path, tag } = target else {
        return Err(PackError::Target(target.clone()));
    };
    let mut config = configuration(platform, options)?;
    let layout = Layout::open_or_create(path)?;
    let in_layout = |source| LayoutError::Io { path: path.clone(), source };
    let mut spool = tempfile::tempfile_in(path).map_err(in_layout)?;
    let mut tar = BufWriter::new(&mut spool);
    write_tar(folder, options.source_date_epoch, &mut tar)?;
    tar.flush().map_err(in_layout)?;
    drop(tar);
    let encoded = encode(&layout, &mut spool, &options.writer)
        .map_err(|source| PackError::Encode { folder: folder.to_owned(), source })?;
    with_diff_ids(&mut config, &[encoded.diff_id]);
    let place = (platform, tag.as_deref());
    Ok(finish(&layout, &config, vec![encoded.descriptor], &BTreeMap::new(), place)?)
}

fn configuration(platform: &Platform, options: &PackOptions) -> Result<Value, PackError> {
    let mut run = serde_json::Map::new();
    for (key, list) in
        [("Entrypoint", &options.entrypoint), ("Cmd", &options.cmd), ("Env", &options.env)]
    {
        if !list.is_empty() {
            run.insert(key.to_owned(), json!(list));
        }
    }
    for (key, text) in [
        ("WorkingDir", &options.working_dir),
        ("User", &options.user),
        ("StopSignal", &options.stop_signal),
    ] {
        if let Some(text) = text {
            run.insert(key.to_owned(), json!(text));
        }
    }
    if !options.labels.is_empty() {
        run.insert("Labels".to_owned(), json!(options.labels));
    }
    if !options.exposed_ports.is_empty() {
        let set: BTreeMap<_, _> =
            options.exposed_ports.iter().map(|port| (port, json!({}))).collect();
        run.insert("ExposedPorts".to_owned(), json!(set));
    }
    let mut config = json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "config": run,
        "history": [{"created_by": "supervisor image pack"}],
    });
    if let Some(variant) = &platform.variant {
        config["variant"] = json!(variant);
    }
    if let Some(epoch) = options.source_date_epoch {
        let created = i64::try_from(epoch)
            .ok()
            .and_then(|epoch| jiff::Timestamp::from_second(epoch).ok())
            .ok_or(PackError::Time(epoch))?
            .to_string();
        config["history"][0]["created"] = json!(created);
        config["created"] = json!(created);
    }
    Ok(config)
}
