//! What is kept in the state directory: blobs, layers, file contents, durable records.
