//! Reads that somebody is about to make: begun before he does, because he makes them one after the other.
//!
//! A path is looked up as the file system above the layers does, in the uppermost layer that has it. A program that is a
//! script names another one, which is read next.

use std::sync::Arc;

use super::layer::LazyLayer;
use crate::estargz::EntryNo;

/// What of a program is looked at: the kernel takes no more as the line that names an interpreter.
const HEAD: u32 = 256;
/// Scripts whose interpreter is a script, as many as the kernel follows.
const SCRIPTS: u32 = 4;
/// Where `env` looks in most images.
const FOLDERS: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin"];

/// The layers of an image, the uppermost first.
type Stack = Arc<[Arc<LazyLayer>]>;

impl LazyLayer {
    /// Reads the beginning of files of an image with these `layers`, the uppermost first, because somebody is about to:
    /// of each list in `wanted` the first path that is a file. What is fetched along is what his own read would bring.
    pub fn expect(layers: Vec<Arc<Self>>, wanted: &[Vec<String>]) {
        if layers.iter().all(|layer| layer.is_complete()) {
            return;
        }
        let stack: Stack = layers.into();
        for paths in wanted {
            begin(&stack, paths, SCRIPTS);
        }
    }
}

fn begin(stack: &Stack, paths: &[String], scripts: u32) {
    let Some((layer, entry)) = find(stack, paths) else { return };
    // What the maker of the layer marked has this too, in fewer requests.
    if !layer.is_complete() && layer.prefetch_numbers().is_some() {
        return;
    }
    let stack = Arc::clone(stack);
    layer.shared.runtime.clone().spawn(async move {
        // Whoever comes to read it is told what goes wrong.
        let Ok(head) = layer.read(entry, 0, HEAD).await else { return };
        if let Some(left) = scripts.checked_sub(1) {
            let interpreter = interpreter(&head);
            if !interpreter.is_empty() {
                begin(&stack, &interpreter, left);
            }
        }
    });
}

fn find(stack: &Stack, paths: &[String]) -> Option<(Arc<LazyLayer>, EntryNo)> {
    stack.iter().find_map(|layer| {
        let mut files = paths.iter().filter_map(|path| layer.file_at(path.as_bytes()));
        Some((Arc::clone(layer), files.next()?))
    })
}

/// Where the interpreter may be that a program names; none if it is no script.
fn interpreter(head: &[u8]) -> Vec<String> {
    let Some(line) = head.strip_prefix(b"#!") else { return Vec::new() };
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split_whitespace();
    let Some(path) = words.next() else { return Vec::new() };
    match words.find(|word| !word.starts_with('-')) {
        Some(name) if path.ends_with("/env") => {
            FOLDERS.iter().map(|folder| format!("{folder}/{name}")).collect()
        }
        _ => vec![path.to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_names_its_interpreter() {
        assert_eq!(interpreter(b"#!/bin/sh\nexec web\n"), ["/bin/sh"]);
        assert_eq!(interpreter(b"#! /bin/bash -e\n"), ["/bin/bash"]);
        let python = interpreter(b"#!/usr/bin/env -S python3 -u\n");
        assert_eq!(python[1], "/usr/bin/python3");
        assert_eq!(interpreter(b"#!/usr/bin/env"), ["/usr/bin/env"]);
        for none in [&b"\x7fELF\x02"[..], b"", b"#", b"#!", b"#! \n/bin/sh"] {
            assert!(interpreter(none).is_empty());
        }
    }
}
