//! Fakes and builders for tests.

mod source;

pub use source::{Answer, ScriptedSource};
