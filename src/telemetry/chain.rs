//! Prints an error with everything that caused it. Messages never hold their source, so this is the one place where
//! the two meet.

use std::error::Error;
use std::fmt;

/// Displays `error` and its sources, from the outermost to the innermost, joined by `: `.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = self.0.to_string();
        f.write_str(&last)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            let text = error.to_string();
            // Foreign errors often repeat their source in their own message.
            if !last.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            last = text;
            source = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("could not read `index`")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn the_whole_chain_is_printed_once() {
        let error = Outer(std::io::Error::other("the disk is gone"));
        assert_eq!(Chain(&error).to_string(), "could not read `index`: the disk is gone");
    }
}
