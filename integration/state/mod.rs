//! What lasts: records in every state of disrepair, reboots, and programs that embed the library.

mod embed;
mod reboot;
mod records;
