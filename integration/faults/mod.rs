//! What goes wrong, through the command line: bad input, sources that misbehave, hosts that cannot do everything, and
//! what a container must not be able to do.

mod confine;
mod content;
mod degraded;
mod features;
mod input;
mod outage;
mod peers;
mod round_trips;
