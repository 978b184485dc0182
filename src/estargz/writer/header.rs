//! Tar headers of what we write: USTAR, with PAX records for what does not fit.

use super::source::{Kind, Source};

/// Largest numbers of seven and of eleven octal digits.
const MAX_SMALL: u64 = 0o777_7777;
const MAX_LARGE: u64 = 0o777_7777_7777;

/// The header blocks of `source` under `name`.
pub(super) fn encode(source: &Source, name: &str) -> Vec<u8> {
    let mut records = Vec::new();
    let size = if source.kind == Kind::Regular { source.size } else { 0 };
    let mtime = u64::try_from(source.mtime).ok().filter(|mtime| *mtime <= MAX_LARGE);
    for (key, value, max) in
        [("gid", source.gid, MAX_SMALL), ("size", size, MAX_LARGE), ("uid", source.uid, MAX_SMALL)]
    {
        if value > max {
            record(&mut records, key, value.to_string().as_bytes());
        }
    }
    for (key, value) in [("linkpath", &*source.link), ("path", name)] {
        if value.len() > 100 || !value.is_ascii() {
            record(&mut records, key, value.as_bytes());
        }
    }
    if mtime.is_none() {
        record(&mut records, "mtime", source.mtime.to_string().as_bytes());
    }
    for (key, value) in &source.xattrs {
        record(&mut records, &format!("SCHILY.xattr.{key}"), value);
    }
    let mut out = Vec::new();
    if !records.is_empty() {
        let length = records.len();
        let fields =
            Fields { name: "././@PaxHeader", flag: b'x', size: length as u64, ..Fields::default() };
        out.extend(fields.block());
        out.extend(records);
        out.resize(512 + length.next_multiple_of(512), 0);
    }
    let fit = |value: u64, max: u64| if value <= max { value } else { 0 };
    out.extend(
        Fields {
            name,
            flag: source.kind.flag(),
            size: fit(size, MAX_LARGE),
            link: &source.link,
            mode: u64::from(source.mode),
            uid: fit(source.uid, MAX_SMALL),
            gid: fit(source.gid, MAX_SMALL),
            mtime: mtime.unwrap_or(0),
            device: source.device,
        }
        .block(),
    );
    out
}

/// The header of a file that belongs to the format: no owner, time or permissions.
pub(super) fn encode_plain(name: &str, size: u64) -> [u8; 512] {
    Fields { name, flag: b'0', size, ..Fields::default() }.block()
}

/// Appends `<length> <key>=<value>\n`, whose length counts its own digits.
fn record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend(format!("{length} {key}=").as_bytes());
    records.extend(value);
    records.push(b'\n');
}

#[derive(Default)]
struct Fields<'a> {
    name: &'a str,
    flag: u8,
    size: u64,
    link: &'a str,
    mode: u64,
    uid: u64,
    gid: u64,
    mtime: u64,
    device: (u32, u32),
}

impl Fields<'_> {
    fn block(&self) -> [u8; 512] {
        let mut block = [0; 512];
        let mut text = |at: usize, text: &str| {
            // Longer ones are in a PAX record; what stands here then is only for people.
            for (to, from) in block[at..at + 100].iter_mut().zip(text.bytes()) {
                *to = from;
            }
        };
        text(0, self.name);
        text(157, self.link);
        let mut octal = |at: usize, digits: usize, value: u64| {
            block[at..at + digits].copy_from_slice(format!("{value:0digits$o}").as_bytes());
        };
        octal(100, 7, self.mode);
        octal(108, 7, self.uid);
        octal(116, 7, self.gid);
        octal(124, 11, self.size);
        octal(136, 11, self.mtime);
        octal(329, 7, u64::from(self.device.0));
        octal(337, 7, u64::from(self.device.1));
        block[156] = self.flag;
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block
    }
}
