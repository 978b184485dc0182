//! Tars written header by header, so that tests can write what no tool would.

/// A tar in the making.
#[derive(Debug, Default, Clone)]
pub(crate) struct TarBuilder {
    bytes: Vec<u8>,
}

/// The fields of a header, with the defaults of a plain file of root.
#[derive(Debug, Clone)]
pub(crate) struct Header<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) kind: u8,
    pub(crate) link: &'a [u8],
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: u64,
    pub(crate) device: (u32, u32),
}

impl<'a> Header<'a> {
    pub(crate) fn new(kind: u8, name: &'a [u8]) -> Self {
        let mode = if kind == b'5' { 0o755 } else { 0o644 };
        Self { name, kind, link: b"", mode, uid: 0, gid: 0, mtime: 1_700_000_000, device: (0, 0) }
    }

    pub(crate) fn link(self, link: &'a [u8]) -> Self {
        Self { link, ..self }
    }
}

impl TarBuilder {
    pub(crate) fn file(self, name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        self.entry(&Header::new(b'0', name.as_ref()), content)
    }

    pub(crate) fn directory(self, name: impl AsRef<[u8]>) -> Self {
        self.entry(&Header::new(b'5', name.as_ref()), b"")
    }

    pub(crate) fn symlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(&Header::new(b'2', name.as_ref()).link(target.as_ref()), b"")
    }

    pub(crate) fn hard_link(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(&Header::new(b'1', name.as_ref()).link(target.as_ref()), b"")
    }

    /// A PAX header (`x` for the next entry, `g` for all that follow).
    pub(crate) fn pax(self, kind: u8, records: &[(&str, &[u8])]) -> Self {
        let mut content = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            content.extend_from_slice(format!("{length} {key}=").as_bytes());
            content.extend_from_slice(value);
            content.push(b'\n');
        }
        self.entry(&Header::new(kind, b"pax"), content)
    }

    /// Any header with any content; names longer than the field get a GNU long name.
    pub(crate) fn entry(mut self, header: &Header<'_>, content: impl AsRef<[u8]>) -> Self {
        for (kind, text) in [(b'L', header.name), (b'K', header.link)] {
            if text.len() > 100 {
                self = self.entry(&Header::new(kind, b"././@LongLink"), [text, b"\0"].concat());
            }
        }
        let content = content.as_ref();
        let mut block = [0; 512];
        let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
        put(0, &header.name[..header.name.len().min(100)]);
        put(100, format!("{:07o}\0", header.mode).as_bytes());
        put(108, format!("{:07o}\0", header.uid).as_bytes());
        put(116, format!("{:07o}\0", header.gid).as_bytes());
        put(124, format!("{:011o}\0", content.len()).as_bytes());
        put(136, format!("{:011o}\0", header.mtime).as_bytes());
        put(156, &[header.kind]);
        put(157, &header.link[..header.link.len().min(100)]);
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}\0", header.device.0).as_bytes());
        put(337, format!("{:07o}\0", header.device.1).as_bytes());
        seal(&mut block);
        self.block(block).raw(content).pad()
    }

    /// A block that is a header already.
    pub(crate) fn block(mut self, block: [u8; 512]) -> Self {
        self.bytes.extend_from_slice(&block);
        self
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub(crate) fn pad(mut self) -> Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// With the two blocks that end a tar.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }

    /// Without them.
    pub(crate) fn unfinished(self) -> Vec<u8> {
        self.bytes
    }
}

/// Writes the checksum of a header.
pub(crate) fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
