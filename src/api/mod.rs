//! The unix-socket API: server, client, wire types.
