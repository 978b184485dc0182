//! Users by name or number, as an image's `/etc/passwd` and `/etc/group` know them. Pure: the files come as text.

use serde::{Deserialize, Serialize};

/// Who runs a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ResolvedUser {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    /// Home directory, from the image or `/`.
    pub(crate) home: String,
}

/// A user that the image does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UserError {
    #[error("user `{0}` is not in the image's /etc/passwd")]
    NoUser(String),
    #[error("group `{0}` is not in the image's /etc/group")]
    NoGroup(String),
}

impl ResolvedUser {
    /// Adds further groups, by name or number.
    pub(crate) fn join(&mut self, groups: &[String], file: &str) -> Result<(), UserError> {
        for named in groups {
            let gid = resolve_group(named, file)?;
            if !self.groups.contains(&gid) {
                self.groups.push(gid);
            }
        }
        Ok(())
    }
}

/// Resolves `user`, `uid`, `user:group`, `uid:gid` … against the two files, with the rules that Docker has: a number
/// need not be in the files, its group is 0 then; a group that is named excludes the user's other groups.
pub(crate) fn resolve(spec: &str, passwd: &str, group: &str) -> Result<ResolvedUser, UserError> {
    let (user, named_group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    // A line without numbers names nobody; taken as 0 it would be root.
    let entries = passwd.lines().filter_map(|line| {
        let line = fields(line);
        let ids = (line.get(2)?.parse::<u32>().ok()?, line.get(3)?.parse::<u32>().ok()?);
        let home = line.get(5).copied().filter(|home| home.starts_with('/')).unwrap_or("/");
        Some((ids.0, ids.1, home, line[0]))
    });
    let mut entries = entries.filter(|(uid, _, _, name)| *name == user || number == Some(*uid));
    let (uid, mut gid, home, name) = match (entries.next(), number) {
        (Some((uid, gid, home, name)), _) => (uid, gid, home, Some(name)),
        (None, Some(uid)) => (uid, 0, if uid == 0 { "/root" } else { "/" }, None),
        (None, None) => return Err(UserError::NoUser(user.to_owned())),
    };
    let mut groups = Vec::new();
    match named_group {
        Some(named) => gid = resolve_group(named, group)?,
        None => {
            for line in group.lines().map(fields) {
                let is_member = name.is_some_and(|name| {
                    line.get(3).is_some_and(|members| members.split(',').any(|m| m == name))
                });
                if is_member && let Some(id) = line.get(2).and_then(|field| field.parse().ok()) {
                    groups.push(id);
                }
            }
        }
    }
    groups.sort_unstable();
    groups.dedup();
    Ok(ResolvedUser { uid, gid, groups, home: home.to_owned() })
}

fn resolve_group(named: &str, group: &str) -> Result<u32, UserError> {
    let by_name = group.lines().map(fields).find(|line| line.first() == Some(&named));
    by_name
        .and_then(|line| line.get(2)?.parse().ok())
        .or_else(|| named.parse().ok())
        .ok_or_else(|| UserError::NoGroup(named.to_owned()))
}

fn fields(line: &str) -> Vec<&str> {
    line.trim().split(':').map(str::trim).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\nbroken\nwww:x:33:34::/var/www:/bin/sh\n\
        1000:x:7:8::/odd:\nhomeless:x:50:50::relative:\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlog:x:4:www,other\ndisk:x:6:other\nmore:x:5:www\n";

    /// User, group, further groups.
    type Ids = (u32, u32, Vec<u32>);

    fn ids(spec: &str) -> Option<Ids> {
        resolve(spec, PASSWD, GROUP).ok().map(|user| (user.uid, user.gid, user.groups))
    }

    #[test]
    fn users_and_groups_are_found_by_name_and_number() {
        let table: &[(&str, Option<Ids>)] = &[
            ("", Some((0, 0, vec![]))),
            ("root", Some((0, 0, vec![]))),
            ("www", Some((33, 34, vec![4, 5]))),
            ("33", Some((33, 34, vec![4, 5]))),
            ("www:disk", Some((33, 6, vec![]))),
            ("www:77", Some((33, 77, vec![]))),
            ("www:", Some((33, 34, vec![4, 5]))),
            ("2000", Some((2000, 0, vec![]))),
            ("2000:2001", Some((2000, 2001, vec![]))),
            ("1000", Some((7, 8, vec![]))),
            ("nobody", None),
            ("broken", None),
            ("www:nogroup", None),
            ("-1", None),
        ];
        for (spec, expected) in table {
            assert_eq!(&ids(spec), expected, "{spec}");
        }
    }

    #[test]
    fn groups_are_added_once() {
        let mut user = resolve("www", PASSWD, GROUP).unwrap();
        let named = ["disk", "77", "log"].map(str::to_owned);
        user.join(&named, GROUP).unwrap();
        assert_eq!(user.groups, [4, 5, 6, 77]);
        let error = user.join(&["nogroup".to_owned()], GROUP).unwrap_err();
        assert_eq!(error, UserError::NoGroup("nogroup".to_owned()));
    }

    #[test]
    fn a_home_is_an_absolute_path() {
        let home = |spec| resolve(spec, PASSWD, GROUP).unwrap().home;
        assert_eq!(home("www"), "/var/www");
        assert_eq!(home("homeless"), "/");
        assert_eq!(home("4711"), "/");
        assert_eq!(resolve("0", "", "").unwrap().home, "/root");
    }
}
