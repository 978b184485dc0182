//! Logging set-up, the metric table, and the printer of error chains.
