//! Nothing of ours that dies takes a container with it: each role killed at each boundary of each action, in a loop
//! under load, and replaced by another build.

mod figures;
mod hold;
mod matrix;
mod reader;
mod runs;
mod soak;
mod upgrade;
