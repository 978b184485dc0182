//! Control's copy of the connection's descriptor, kept in step with the connection that lives.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::connect;
use super::handle::Shared;
use super::protocol::{KEEPER_SOCKET, Request};
use super::session::Session;

/// A copy and the generation of its connection.
#[derive(Debug, Default)]
pub(super) struct HeldCopy(Mutex<Option<(u64, OwnedFd)>>);

impl HeldCopy {
    /// Another copy of it.
    pub(super) fn get(&self) -> Option<OwnedFd> {
        self.lock().as_ref().and_then(|(_, descriptor)| descriptor.try_clone().ok())
    }

    /// Another copy of it, if it is of the connection of this generation.
    pub(super) fn get_of(&self, generation: u64) -> Option<OwnedFd> {
        let held = self.lock();
        let (_, descriptor) = held.as_ref().filter(|(known, _)| *known == generation)?;
        descriptor.try_clone().ok()
    }

    /// Closes it: as long as it is open, the connection does not end with its other holders.
    pub(super) fn close(&self) {
        self.lock().take();
    }

    fn lock(&self) -> MutexGuard<'_, Option<(u64, OwnedFd)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Makes the copy one of the connection that lives. Where the kernel cannot send requests again there is none:
    /// nobody could go on with it, and readers of a dead connection would wait for ever instead of getting an error.
    pub(super) async fn refresh_copy(&self) {
        let Ok(session) = Session::open(&self.directory) else { return };
        let generation = session.born();
        if !connect::granted(&session).is_some_and(|granted| granted.resend) {
            return self.copy.close();
        }
        drop(session);
        if self.copy.lock().as_ref().is_some_and(|(known, _)| *known == generation) {
            return;
        }
        // One attempt: whatever changes next asks again.
        let answer = self.ask(KEEPER_SOCKET, &Request::Descriptor, &[]).await;
        let descriptor = answer.ok().and_then(|(_, descriptors)| descriptors.into_iter().next());
        if let Some(descriptor) = descriptor
            && !self.stopped.is_cancelled()
        {
            *self.copy.lock() = Some((generation, descriptor));
        }
    }
}
