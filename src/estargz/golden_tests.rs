//! Images made by another tool.
