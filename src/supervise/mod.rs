//! The shell around the planner: driver loop, host seam, execution, journal, events.
