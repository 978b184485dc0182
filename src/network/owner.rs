//! What is ours: names that carry the instance, and the proof that a thing bears one of them.

use sha2::{Digest as _, Sha256};

/// Characters of the hash at the end of an interface's name: 25 bits.
const HASH_LENGTH: usize = 5;
/// Digits and letters without those that are easily mistaken, as in RFC 4648 but lower case.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// One instance of this program, as the owner of interfaces and rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    instance: String,
}

/// What an interface is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// The bridge of a network.
    Bridge,
    /// The host's end of a pair whose other end is in a container.
    Port,
}

impl LinkKind {
    const fn letter(self) -> char {
        match self {
            Self::Bridge => 'b',
            Self::Port => 'v',
        }
    }
}

/// The text is no instance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no instance: eight hexadecimal digits are")]
pub struct OwnerError(String);

impl Owner {
    /// The owner whose instance is `instance`: eight lower-case hexadecimal digits.
    ///
    /// # Errors
    /// When it is anything else: a shorter prefix would claim what belongs to others.
    pub fn new(instance: &str) -> Result<Self, OwnerError> {
        let is_digit = |b: u8| b.is_ascii_digit() || matches!(b, b'a'..=b'f');
        if instance.len() == 8 && instance.bytes().all(is_digit) {
            Ok(Self { instance: instance.to_owned() })
        } else {
            Err(OwnerError(instance.to_owned()))
        }
    }

    /// The instance.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Name of our nftables table.
    #[must_use]
    pub fn table(&self) -> String {
        format!("supervisor-{}", self.instance)
    }

    /// Name of the interface that is `kind` for `what`. Should two things have the same name, which the alias tells,
    /// the next `attempt` gives another.
    #[must_use]
    pub fn link(&self, kind: LinkKind, what: &str, attempt: u32) -> String {
        let mut hash = Sha256::new();
        hash.update(attempt.to_le_bytes());
        hash.update(what.as_bytes());
        let hash = hash.finalize();
        let letters = hash.iter().take(HASH_LENGTH);
        let tail: String =
            letters.map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect();
        format!("{}{}{tail}", self.prefix(), kind.letter())
    }

    /// The alias of the interface that exists for `what`; `ip link` shows it.
    #[must_use]
    pub fn alias(&self, what: &str) -> String {
        // The kernel keeps 255 bytes.
        format!("{}{what}", self.alias_prefix()).chars().take(200).collect()
    }

    /// Whether an interface is ours. One that has no alias yet is, because the alias is set after it was made.
    #[must_use]
    pub fn owns(&self, name: &str, alias: Option<&str>) -> bool {
        let named = name.strip_prefix(self.prefix().as_str()).is_some_and(|rest| {
            rest.len() == 1 + HASH_LENGTH
                && rest.starts_with([LinkKind::Bridge.letter(), LinkKind::Port.letter()])
                && rest.bytes().skip(1).all(|b| ALPHABET.contains(&b))
        });
        named && alias.is_none_or(|alias| alias.starts_with(&self.alias_prefix()))
    }

    /// What the interface of ours with this name is.
    #[must_use]
    pub fn kind(&self, name: &str) -> LinkKind {
        match name.strip_prefix(self.prefix().as_str()) {
            Some(rest) if rest.starts_with(LinkKind::Bridge.letter()) => LinkKind::Bridge,
            _ => LinkKind::Port,
        }
    }

    /// What the interface with this alias of ours exists for.
    #[must_use]
    pub fn what<'a>(&self, alias: &'a str) -> Option<&'a str> {
        alias.strip_prefix(self.alias_prefix().as_str())
    }

    fn prefix(&self) -> String {
        format!("s{}", self.instance)
    }

    fn alias_prefix(&self) -> String {
        format!("supervisor {}: ", self.instance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_have_names_that_the_kernel_takes() {
        let owner = Owner::new("0badcafe").unwrap();
        let bridge = owner.link(LinkKind::Bridge, "shop/default", 0);
        assert_eq!(bridge.len(), 15);
        assert!(bridge.starts_with("s0badcafeb"), "{bridge}");
        assert_ne!(bridge, owner.link(LinkKind::Bridge, "shop/default", 1));
        assert_ne!(bridge, owner.link(LinkKind::Bridge, "shop/other", 0));
        assert!(owner.owns(&bridge, Some(&owner.alias("shop/default"))));
        assert!(owner.owns(&bridge, None));
    }

    #[test]
    fn what_others_made_is_not_ours() {
        let owner = Owner::new("0badcafe").unwrap();
        let other = Owner::new("0badcaff").unwrap();
        let theirs = other.link(LinkKind::Port, "shop/web-1", 0);
        assert!(!owner.owns(&theirs, None));
        let bridge = owner.link(LinkKind::Bridge, "x", 0);
        assert!(!owner.owns(&bridge, Some("uplink of the office")));
        assert!(!owner.owns(&bridge, Some(&other.alias("x"))));
        for name in
            ["s0badcafe", "s0badcafex12345", "s0badcafeb", "eth0", "s0badcafebABCDE", "docker0"]
        {
            assert!(!owner.owns(name, None), "{name}");
        }
    }

    #[test]
    fn an_instance_is_eight_digits() {
        for wrong in ["", "0badcaf", "0badcafe0", "0BADCAFE", "0badcaf/"] {
            assert!(Owner::new(wrong).is_err(), "{wrong}");
        }
    }
}
