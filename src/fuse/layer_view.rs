//! A layer of the lazy engine as the tree sees it. Content errors are logged here, where the reader's number is lost.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::errno::Refusal;
use super::tree::Layer;
use crate::estargz::{Entry, EntryNo};
use crate::lazy::{LazyLayer, Opened, ReadError};
use crate::telemetry;

fn refuse(error: &ReadError) -> Refusal {
    tracing::warn!(error = %telemetry::Chain(error), "content could not be read");
    Refusal::from(error)
}

impl Layer for LazyLayer {
    fn attributes(&self, entry: u32) -> Option<Entry> {
        self.index().entry(EntryNo(entry))
    }

    fn lookup(&self, dir: u32, name: &[u8]) -> Option<u32> {
        self.index().lookup(EntryNo(dir), name).map(|entry| entry.0)
    }

    fn child(&self, dir: u32, place: u32) -> Option<(&[u8], u32)> {
        self.index().child(EntryNo(dir), place).map(|(name, entry)| (name, entry.0))
    }

    fn parent(&self, entry: u32) -> u32 {
        self.index().parent(EntryNo(entry)).0
    }

    fn link_target(&self, entry: u32) -> &[u8] {
        self.index().link_target(EntryNo(entry))
    }

    fn xattr(&self, entry: u32, name: &[u8]) -> Option<Vec<u8>> {
        self.index().xattr(EntryNo(entry), name).map(<[u8]>::to_vec)
    }

    fn xattr_names(&self, entry: u32) -> Vec<Vec<u8>> {
        self.index().xattrs(EntryNo(entry)).map(|(name, _)| name.to_vec()).collect()
    }

    fn content_size(&self) -> u64 {
        self.index().content_size()
    }

    fn closed(&self, entry: u32) {
        LazyLayer::closed(self, EntryNo(entry));
    }

    fn open_local(&self, entry: u32) -> Result<Option<Opened>, Refusal> {
        self.open_local(EntryNo(entry)).map_err(|error| refuse(&error))
    }

    fn open(self: Arc<Self>, entry: u32) -> BoxFuture<'static, Result<Opened, Refusal>> {
        async move { LazyLayer::open(&self, EntryNo(entry)).await.map_err(|error| refuse(&error)) }
            .boxed()
    }

    fn first_content(&self, entry: u32) -> Option<Bytes> {
        self.first_content(EntryNo(entry))
    }

    fn read_local(&self, entry: u32, offset: u64, length: u32) -> Result<Option<Bytes>, Refusal> {
        self.read_local(EntryNo(entry), offset, length).map_err(|error| refuse(&error))
    }

    fn read(
        self: Arc<Self>,
        entry: u32,
        offset: u64,
        length: u32,
    ) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        async move {
            let read = LazyLayer::read(&self, EntryNo(entry), offset, length).await;
            read.map_err(|error| refuse(&error))
        }
        .boxed()
    }
}
