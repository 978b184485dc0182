//! One layer of an image made ready: lazy or unpacked, and why.
