//! Containers through real monitors: a root file system of one busybox, as root.

mod bundle;
mod exec;
mod lifecycle;
mod survival;
mod tidy;
