//! The record of who is in which network, where it may be lost: what is known then, and when it can be made anew. Pure.

use super::bridges::FoundMembers;
use crate::network::{NetworkState, Surroundings};
use crate::telemetry::Chain;

/// What is written down of who is in which network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Written {
    /// Nothing, as where nobody ever was in one.
    Nothing,
    /// All of it. What a crash left is looked for.
    All,
    /// It cannot be known. Nobody joins: the host would be made like a state without those who are in networks.
    Lost(Loss),
}

/// What became of the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Loss {
    pub(super) reason: String,
    /// Of containers that run: when all that are unknown have ended, the others are all that there are.
    pub(super) found: FoundMembers,
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.found.unknown.first_key_value() {
            Some((container, reason)) => write!(
                f,
                "the networks of a running container cannot be made out: `{container}` ({reason}); stop or restart its \
                 service, and others are let in"
            ),
            None => write!(
                f,
                "{}; it says which containers are in which networks: put it right, or, when none of them runs, remove it",
                self.reason
            ),
        }
    }
}

impl Loss {
    /// Takes out a container, which has ended. True if it was the last one that is unknown.
    pub(super) fn is_settled_without(&mut self, container: &str) -> bool {
        self.found.members.retain(|wish| wish.container != container);
        self.found.unknown.remove(container).is_some() && self.found.unknown.is_empty()
    }

    /// The networks with those who are in them.
    ///
    /// # Errors
    /// What is still lost, when it cannot be told of one of them.
    pub(super) fn rebuild(mut self) -> Result<NetworkState, Self> {
        let mut state = NetworkState::default();
        // They are there: nothing of the host is in their way.
        let nothing = Surroundings::default();
        let FoundMembers { members, unknown } = &mut self.found;
        members.retain(|wish| match state.join(wish, &nothing, |_| true) {
            Ok(()) => true,
            Err(error) => {
                // Or its interfaces would be taken for left over.
                unknown.insert(wish.container.clone(), Chain(&error).to_string());
                false
            }
        });
        if unknown.is_empty() { Ok(state) } else { Err(self) }
    }
}
