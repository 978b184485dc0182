//! Making images: pack, convert, optimize, push.
