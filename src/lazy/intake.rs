//! Bytes of a range as they arrive, cut into members that can be inflated.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes};

use super::extent::Extent;

/// Compressed bytes that are inflated in one go: small files by the hundred, and yet work for several processors.
const BATCH: u64 = 256 << 10;

#[derive(Debug)]
pub(super) struct Intake {
    /// Members that are not complete yet, in the order of the blob.
    members: VecDeque<Extent>,
    /// As they came, so that nothing is copied that is inflated by another thread anyway.
    pieces: VecDeque<Bytes>,
    /// Bytes in all pieces.
    held: usize,
    /// Where in the blob the first piece begins.
    from: u64,
    end: u64,
}

impl Intake {
    /// For `members`, in the order of the blob.
    pub(super) fn new(members: VecDeque<Extent>) -> Self {
        let from = members.front().map_or(0, |member| member.range.start);
        let end = members.iter().map(|member| member.range.end).max().unwrap_or(from);
        Self { members, pieces: VecDeque::new(), held: 0, from, end }
    }

    /// The next byte of the blob that is missing.
    pub(super) fn position(&self) -> u64 {
        self.from + self.held as u64
    }

    /// The end of the range.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Bytes that came and were not handed on.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Whether nothing is missing.
    pub(super) fn is_complete(&self) -> bool {
        self.position() >= self.end
    }

    /// What is still to come, and what it will be when inflated.
    pub(super) fn memory(&self) -> u64 {
        let content: u64 = self.members.iter().map(|member| member.content).sum();
        self.end - self.from + content
    }

    /// Takes what came; false if it is more than was missing.
    pub(super) fn push(&mut self, piece: Bytes) -> bool {
        let is_wanted = piece.len() as u64 <= self.end - self.position();
        if is_wanted && !piece.is_empty() {
            self.held += piece.len();
            self.pieces.push_back(piece);
        }
        is_wanted
    }

    /// Takes so many bytes from the front, or all.
    fn take(&mut self, mut length: usize) -> Vec<Bytes> {
        let mut taken = Vec::new();
        while length > 0 {
            let Some(piece) = self.pieces.front_mut() else { break };
            let part = piece.split_to(length.min(piece.len()));
            if !piece.has_remaining() {
                self.pieces.pop_front();
            }
            length -= part.len();
            self.held -= part.len();
            taken.push(part);
        }
        taken
    }

    /// Forgets the bytes of members that are not complete.
    pub(super) fn rewind(&mut self) {
        (self.pieces, self.held) = (VecDeque::new(), 0);
        self.from = self.members.front().map_or(self.end, |member| member.range.start);
    }

    /// The next members that are complete, and their bytes.
    pub(super) fn batch(&mut self) -> Option<(Extent, Vec<Bytes>)> {
        let position = self.position();
        let mut batch: Option<Extent> = None;
        while let Some(member) = self.members.front()
            && member.range.end <= position
            && batch.as_ref().is_none_or(|batch| batch.length() < BATCH)
        {
            let Some(member) = self.members.pop_front() else { break };
            match batch.as_mut() {
                Some(batch) => batch.append(member),
                None => batch = Some(member),
            }
        }
        let batch = batch?;
        let skipped = usize::try_from(batch.range.start.saturating_sub(self.from)).ok()?;
        drop(self.take(skipped));
        let bytes = self.take(usize::try_from(batch.length()).ok()?);
        self.from = batch.range.end;
        Some((batch, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(range: std::ops::Range<u64>) -> Extent {
        Extent { numbers: vec![u32::try_from(range.start).unwrap()], content: 10, range }
    }

    #[test]
    fn members_come_out_as_soon_as_they_are_complete() {
        let members = [member(10..20), member(20..25), member(30..40)];
        let mut intake = Intake::new(members.into());
        assert_eq!((intake.position(), intake.end(), intake.memory()), (10, 40, 60));
        assert!(intake.push(Bytes::from_static(&[1; 9])));
        assert!(intake.batch().is_none());
        assert!(intake.push(Bytes::from_static(&[2; 7])));
        let (batch, bytes) = intake.batch().unwrap();
        let bytes = bytes.concat();
        assert_eq!((batch.range, bytes.len(), &bytes[8..10]), (10..25, 15, &[1, 2][..]));
        // One byte of the gap has come.
        assert_eq!(intake.position(), 26);
        assert!(intake.push(Bytes::from_static(&[3; 6])));
        intake.rewind();
        assert_eq!((intake.position(), intake.memory()), (30, 20));
        assert!(intake.push(Bytes::from_static(&[4; 10])));
        assert!(!intake.push(Bytes::from_static(&[5])));
        let (batch, bytes) = intake.batch().unwrap();
        assert_eq!((batch.range, &bytes.concat()[..]), (30..40, &[4; 10][..]));
        assert_eq!(intake.position(), intake.end());
    }

    #[test]
    fn what_lies_between_members_is_left_out() {
        let mut intake = Intake::new([member(10..20), member(30..40)].into());
        assert!(intake.push(Bytes::from_static(&[1; 12])));
        assert_eq!(intake.batch().unwrap().0.range, 10..20);
        assert!(intake.push(Bytes::from_static(&[2; 18])));
        let (batch, bytes) = intake.batch().unwrap();
        assert_eq!((batch.range, &bytes.concat()[..]), (30..40, &[2; 10][..]));
    }
}
