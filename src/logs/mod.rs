//! Log files of containers: write, rotate, follow.
