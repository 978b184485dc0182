//! Fakes and builders for tests.

mod layer;
mod source;

pub use layer::{BuiltLayer, LayerBuilder};
pub use source::{Answer, ScriptedSource};
