//! What lasts: records in every state of disrepair, directories of newer programs, reboots, and programs that embed the
//! library.

mod embed;
mod reboot;
mod records;
mod version;
