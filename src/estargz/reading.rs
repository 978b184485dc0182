//! Reads a layer the way the product does, for tests that have the whole blob at hand.

use super::index::build;
use super::{EntryNo, Index, Tail, TocBytes, chunk, tail};

pub(super) fn toc_of(blob: &[u8]) -> TocBytes {
    let size = blob.len() as u64;
    let parse = |from: u64| tail::parse(&blob[usize::try_from(from).unwrap()..], size).unwrap();
    match parse(size - tail::first_tail_len(size)) {
        Tail::Complete(toc) => toc,
        Tail::NeedFrom(from) => match parse(from) {
            Tail::Complete(toc) => toc,
            other => panic!("{other:?}"),
        },
        Tail::NotEstargz => panic!("not recognized"),
    }
}

pub(super) fn open(blob: &[u8], toc: &TocBytes) -> Index<Vec<u8>> {
    Index::open(build(&toc.json, &toc.index_input(blob.len() as u64)).unwrap()).unwrap()
}

pub(super) fn content(index: &Index<Vec<u8>>, blob: &[u8], entry: EntryNo) -> Vec<u8> {
    let mut content = Vec::new();
    for n in 0..index.chunk_count(entry) {
        let part = index.chunk(entry, n).unwrap();
        let [start, end] =
            [part.member.start, part.member.end].map(|at| usize::try_from(at).unwrap());
        let bytes = chunk::decode(
            index.flavour(),
            &blob[start..end],
            part.inner_offset,
            part.size,
            part.digest,
        );
        content.extend(bytes.unwrap());
    }
    content
}
