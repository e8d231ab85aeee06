//! The rows of a table, straight from the pages of its file.
//!
//! SQLite reads a table up to the first damaged page. Here no more is missing than what is on such a page, or below it. The pages are
//! read as SQLite's file format has them (<https://www.sqlite.org/fileformat2.html>, 1.6 and 2.1). Each is looked at once, so
//! that the walk ends whatever they say. The file must have no WAL.

use std::{
    collections::HashSet,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use rusqlite::types::Value;

use super::{Missing, SalvageError};

/// The file's own header, before the first page's.
const FILE_HEADER: usize = 100;

/// The most bytes of a row. No row of ours has as many; a damaged one may say so.
const ROW_MAX: usize = 16 << 20;

/// A file of SQLite.
pub struct Pages {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// The size of a page, and what of it is used.
    size: usize,
    usable: usize,
}

/// A rowid, where the table has them, and values.
type StoredRow = (Option<i64>, Vec<Value>);

/// A page of a table.
struct Node {
    /// Where its cells begin.
    cells: Vec<usize>,
    /// Of a page that has others below it: the one behind the last cell.
    last_child: Option<u32>,
}

impl Pages {
    /// Opens a file that SQLite takes for one of its own.
    pub fn open(path: &Path) -> Result<Self, SalvageError> {
        let of = |error| SalvageError::file(path, error);
        let file = File::open(path).map_err(of)?;
        let bytes = file.metadata().map_err(of)?.len();
        let mut header = [0; FILE_HEADER];
        file.read_exact_at(&mut header, 0).map_err(of)?;
        let size = match u16::from_be_bytes([header[16], header[17]]) {
            1 => 65_536,
            size => usize::from(size),
        };
        // No page is smaller, and no more of one is reserved.
        if size < 512 || size - usize::from(header[20]) < 480 {
            return Err(of(io::ErrorKind::InvalidData.into()));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            bytes,
            size,
            usable: size - usize::from(header[20]),
        })
    }

    /// Hands each row below this root to `keep`: its rowid, where `has_rowid`, and its values as they are stored. Tells what is missing.
    pub fn rows(
        &self,
        root: u32,
        has_rowid: bool,
        keep: &mut dyn FnMut(Option<i64>, Vec<Value>) -> Result<(), SalvageError>,
    ) -> Result<Missing, SalvageError> {
        let (mut seen, mut ahead) = (HashSet::new(), vec![(root, 0_u32)]);
        // How deep the damaged pages lie, and the whole leaves.
        let (mut damaged, mut leaf_depth) = (Vec::new(), None);
        let (mut leaves, mut rows, mut unreadable) = (0_u64, 0_u64, 0_u64);
        while let Some((number, depth)) = ahead.pop() {
            let page = if seen.insert(number) { self.page(number)? } else { None };
            let node = page.as_ref().and_then(|page| self.node(page, number, has_rowid));
            let (Some(page), Some(node)) = (page, node) else {
                damaged.push(depth);
                continue;
            };
            let mut below = Vec::new();
            for &cell in &node.cells {
                let mut at = cell;
                if node.last_child.is_some() {
                    below.push(number_at(&page, at).unwrap_or(0));
                    at += 4;
                    if has_rowid {
                        continue;
                    }
                }
                match self.row(&page, at, has_rowid)? {
                    Some((rowid, values)) => {
                        rows += 1;
                        keep(rowid, values)?;
                    }
                    None => unreadable += 1,
                }
            }
            below.extend(node.last_child);
            if node.last_child.is_none() {
                leaves += 1;
                leaf_depth = Some(depth);
            }
            ahead.extend(below.into_iter().rev().map(|number| (number, depth + 1)));
        }
        let pages = damaged.len() as u64;
        Ok(Missing {
            pages,
            rows: unreadable + (rows * pages).checked_div(leaves).unwrap_or(0),
            // What lay below them cannot be told.
            at_least: damaged.iter().any(|depth| Some(*depth) != leaf_depth),
        })
    }

    /// A page, unless the file does not reach so far.
    fn page(&self, number: u32) -> Result<Option<Vec<u8>>, SalvageError> {
        let size = self.size as u64;
        let Some(before) = number.checked_sub(1) else {
            return Ok(None);
        };
        let from = u64::from(before) * size;
        if from + size > self.bytes {
            return Ok(None);
        }
        let mut page = vec![0; self.size];
        let read = self.file.read_exact_at(&mut page, from);
        read.map_err(|error| SalvageError::file(&self.path, error))?;
        Ok(Some(page))
    }

    fn node(&self, page: &[u8], number: u32, has_rowid: bool) -> Option<Node> {
        let header = if number == 1 { FILE_HEADER } else { 0 };
        let (leaf, inner) = if has_rowid { (0x0d, 0x05) } else { (0x0a, 0x02) };
        let kind = *page.get(header)?;
        let (begin, last_child) = match kind {
            _ if kind == leaf => (header + 8, None),
            _ if kind == inner => (header + 12, Some(number_at(page, header + 8)?)),
            _ => return None,
        };
        let count = usize::from(u16::from_be_bytes([page[header + 3], page[header + 4]]));
        let end = begin + 2 * count;
        let places = page[..self.usable].get(begin..end)?.chunks_exact(2);
        Some(Node {
            cells: places
                .map(|place| usize::from(u16::from_be_bytes([place[0], place[1]])))
                .collect(),
            last_child,
        })
    }

    /// The row in the cell that begins here, behind the number of the page below it.
    fn row(&self, page: &[u8], at: usize, has_rowid: bool) -> Result<Option<StoredRow>, SalvageError> {
        let page = &page[..self.usable];
        let Some((length, mut at)) = varint(page, at) else {
            return Ok(None);
        };
        let mut rowid = None;
        if has_rowid {
            let Some((id, behind)) = varint(page, at) else {
                return Ok(None);
            };
            (rowid, at) = (Some(id.cast_signed()), behind);
        }
        let payload = self.payload(page, at, length, has_rowid)?;
        Ok(payload.and_then(|payload| Some((rowid, record(&payload)?))))
    }

    /// What a cell holds, with what of it is on pages of its own.
    fn payload(&self, page: &[u8], at: usize, length: u64, in_table: bool) -> Result<Option<Vec<u8>>, SalvageError> {
        let Some(length) = usize::try_from(length).ok().filter(|length| *length <= ROW_MAX) else {
            return Ok(None);
        };
        let most = if in_table {
            self.usable - 35
        } else {
            (self.usable - 12) * 64 / 255 - 23
        };
        let least = (self.usable - 12) * 32 / 255 - 23;
        let here = match least + length.saturating_sub(least) % (self.usable - 4) {
            _ if length <= most => length,
            fits if fits <= most => fits,
            _ => least,
        };
        let Some(begin) = page.get(at..at + here) else {
            return Ok(None);
        };
        let mut payload = begin.to_vec();
        let mut next = if here < length {
            number_at(page, at + here)
        } else {
            None
        };
        while payload.len() < length {
            let Some(more) = next.map(|number| self.page(number)).transpose()?.flatten() else {
                return Ok(None);
            };
            let wanted = (length - payload.len()).min(self.usable - 4);
            payload.extend_from_slice(&more[4..4 + wanted]);
            next = number_at(&more, 0);
        }
        Ok(Some(payload))
    }
}

fn number_at(page: &[u8], at: usize) -> Option<u32> {
    let bytes = page.get(at..at + 4)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// A number of one to nine bytes, and where what is behind it begins.
fn varint(bytes: &[u8], at: usize) -> Option<(u64, usize)> {
    let mut number = 0;
    for n in 0..8 {
        let byte = u64::from(*bytes.get(at + n)?);
        number = (number << 7) | (byte & 0x7f);
        if byte < 0x80 {
            return Some((number, at + n + 1));
        }
    }
    Some(((number << 8) | u64::from(*bytes.get(at + 8)?), at + 9))
}

/// The values of a record; `None` where it is none.
fn record(payload: &[u8]) -> Option<Vec<Value>> {
    let (end, mut at) = varint(payload, 0)?;
    let (header, mut body) = payload.split_at_checked(usize::try_from(end).ok()?)?;
    let mut values = Vec::new();
    while at < header.len() {
        let (kind, behind) = varint(header, at)?;
        at = behind;
        let length = match kind {
            0 | 8 | 9 => 0,
            1..=4 => kind,
            5 => 6,
            6 | 7 => 8,
            10 | 11 => return None,
            _ => (kind - 12) / 2,
        };
        let (bytes, rest) = body.split_at_checked(usize::try_from(length).ok()?)?;
        body = rest;
        values.push(match kind {
            0 => Value::Null,
            8 => Value::Integer(0),
            9 => Value::Integer(1),
            1..=6 => Value::Integer(integer(bytes)),
            7 => Value::Real(f64::from_bits(integer(bytes).cast_unsigned())),
            _ if kind % 2 == 0 => Value::Blob(bytes.to_vec()),
            _ => Value::Text(String::from_utf8(bytes.to_vec()).ok()?),
        });
    }
    Some(values)
}

/// A signed number, its highest byte first.
fn integer(bytes: &[u8]) -> i64 {
    let sign = if bytes.first().is_some_and(|first| *first >= 0x80) {
        -1
    } else {
        0
    };
    bytes.iter().fold(sign, |number, byte| (number << 8) | i64::from(*byte))
}
