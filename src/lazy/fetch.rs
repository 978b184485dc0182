//! What a flight does: look once more into the cache, wait for a connection, take the range, wait out an outage, and
//! fetch once more what was corrupt.

use std::sync::Arc;
use std::time::Duration;

use super::decode::Suspects;
use super::error::ReadError;
use super::event::LazyEvent;
use super::extent::Extent;
use super::flight::{Claim, FlightEnd};
use super::intake::Intake;
use super::layer::LazyLayer;
use super::scheduler::{Ask, Permit, Priority};
use super::source::SourceError;
use super::transfer::{Broken, HOLDS, Transfer};
use crate::telemetry::Chain;

impl LazyLayer {
    pub(super) async fn fly(
        self: &Arc<Self>,
        claim: &Claim,
        priority: Priority,
        mut permit: Option<Permit>,
    ) -> Result<(), FlightEnd> {
        // Whoever found a chunk missing may have looked before an earlier flight landed.
        let (flight, numbers) = (claim.flight.clone(), claim.extent.numbers.clone());
        let missing = self.blocking(move |layer| layer.land_local(&flight, &numbers));
        let missing = missing.await.map_err(FlightEnd::Failed)?;
        for extent in self.extents_of(missing.into_iter()) {
            // What is only fetched along is not worth a request of its own.
            if extent.numbers.iter().any(|number| claim.needs(*number)) {
                let suspects = self.transfer(claim, &extent, priority, permit.take()).await?;
                self.fetch_again(claim, suspects).await?;
            }
        }
        Ok(())
    }

    /// Once more, each member alone: a transfer can go wrong, and one bad member must not cost the others. Memory is
    /// not asked for: this flight may hold what the others wait for.
    async fn fetch_again(
        self: &Arc<Self>,
        claim: &Claim,
        mut suspects: Suspects,
    ) -> Result<(), FlightEnd> {
        suspects.retain(|(number, _)| claim.needs(*number));
        if !suspects.is_empty() {
            self.source.distrust();
        }
        while let Some(member) = suspects.first().and_then(|(number, _)| self.member_of(*number)) {
            let alone = Extent { content: 0, ..member.clone() };
            for (number, error) in self.transfer(claim, &alone, Priority::Foreground, None).await? {
                if suspects.iter().any(|(suspect, _)| *suspect == number) {
                    let error = self.corrupt(number, error);
                    self.land(&claim.flight, &member, vec![(number, Err(error))], None);
                }
            }
            suspects.retain(|(number, _)| !member.numbers.contains(number));
        }
        Ok(())
    }

    /// Brings `extent` into the cache and to those who wait, and gives the chunks that were corrupt. Waits while the
    /// source is lost and somebody needs them.
    async fn transfer(
        self: &Arc<Self>,
        claim: &Claim,
        extent: &Extent,
        mut priority: Priority,
        mut permit: Option<Permit>,
    ) -> Result<Suspects, FlightEnd> {
        let mut transfer = Transfer::new(self, &claim.flight, Intake::new(self.members_in(extent)));
        while !transfer.intake.is_complete() {
            if self.health.is_lost() {
                // Readers that wait for the end of the outage keep background from its turn, and this may become
                // the probe that they wait for.
                drop(permit.take());
                priority = Priority::Foreground;
            }
            let admission = tokio::select! {
                admission = self.health.admit() => admission,
                () = self.closed.cancelled() => return Err(self.closed_end()),
            };
            let bytes = match extent.content {
                0 => 0,
                _ => transfer.intake.memory().min(HOLDS + self.wanted_bytes(claim, extent)),
            };
            let ask = Ask { priority, lane: self.lane, bytes };
            let Permit { connection, mut memory } = match permit.take() {
                Some(permit) => permit,
                None => self.shared.scheduler.acquire(ask).await,
            };
            let received = transfer.receive(&mut memory, ask).await;
            drop(connection);
            // What has arrived is kept, whatever became of the rest.
            transfer.finish().await?;
            let error = match received {
                Ok(()) => {
                    self.tell_back(admission.answered());
                    continue;
                }
                Err(Broken::Ended(end)) => return Err(end),
                Err(Broken::Source(error)) => error,
            };
            transfer.intake.rewind();
            let reason = Chain(&error).to_string();
            match error {
                SourceError::Unreachable { retry_after, .. } => {
                    if admission.failed(retry_after) {
                        self.tell(LazyEvent::SourceLost { layer: self.digest, reason });
                    }
                    if !claim.flight.is_awaited() {
                        return Err(FlightEnd::Abandoned);
                    }
                }
                SourceError::Refused { .. } => {
                    self.tell_back(admission.answered());
                    let error = ReadError::Refused { layer: self.digest, source: Arc::new(error) };
                    self.refusals.refuse_source(error.clone());
                    self.tell(LazyEvent::SourceRefused { layer: self.digest, reason });
                    return Err(FlightEnd::Failed(error));
                }
            }
        }
        Ok(transfer.suspects)
    }

    /// Content of `extent` that is kept until those who wait for it have taken it.
    fn wanted_bytes(&self, claim: &Claim, extent: &Extent) -> u64 {
        let wanted = extent.numbers.iter().filter(|number| claim.flight.is_wanted(**number));
        let chunks = wanted.filter_map(|number| self.chunk_of(*number));
        chunks.map(|(chunk, _, _)| u64::from(chunk.size)).sum()
    }

    fn tell_back(&self, after: Option<Duration>) {
        if let Some(after) = after {
            self.tell(LazyEvent::SourceBack { layer: self.digest, after });
        }
    }

    pub(super) fn tell(&self, event: LazyEvent) {
        self.shared.events.send(event);
    }

    pub(super) fn closed_end(&self) -> FlightEnd {
        FlightEnd::Failed(ReadError::Closed(self.digest))
    }
}
