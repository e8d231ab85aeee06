//! A document of BSON (bsonspec.org, 1.1), written into one buffer of the right size.
//!
//! The driver's own builder begins with an empty buffer and grows it field by field, which is most of what a document of the
//! log cost. What is written here is read back by the driver's reader in a test.

use mongodb::bson::RawDocumentBuf;
use uuid::Uuid;

/// A document that is being written.
pub(super) struct Fields(Vec<u8>);

impl Fields {
    /// One of about so many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut buffer = Vec::with_capacity(bytes);
        // The length, which is known at the end.
        buffer.extend([0; 4]);
        Self(buffer)
    }

    fn field(&mut self, kind: u8, name: &str) {
        debug_assert!(!name.contains('\0'));
        self.0.push(kind);
        self.0.extend(name.as_bytes());
        self.0.push(0);
    }

    fn length(&mut self, length: usize) {
        // Nothing that comes here is longer than a message may be.
        self.0.extend(i32::try_from(length).unwrap_or(i32::MAX).to_le_bytes());
    }

    pub fn text(&mut self, name: &str, text: &str) {
        self.field(0x02, name);
        self.length(text.len() + 1);
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    pub fn number(&mut self, name: &str, number: i64) {
        self.field(0x12, name);
        self.0.extend(number.to_le_bytes());
    }

    /// A time in milliseconds since 1970.
    pub fn time(&mut self, name: &str, ms: i64) {
        self.field(0x09, name);
        self.0.extend(ms.to_le_bytes());
    }

    pub fn uuid(&mut self, name: &str, id: Uuid) {
        self.field(0x05, name);
        self.length(16);
        self.0.push(0x04);
        self.0.extend(id.as_bytes());
    }

    pub fn flag(&mut self, name: &str, flag: bool) {
        self.field(0x08, name);
        self.0.push(u8::from(flag));
    }

    pub fn document(&mut self, name: &str, write: impl FnOnce(&mut Self)) {
        self.nested(0x03, name, write);
    }

    /// A list of documents, each written by `write`.
    pub fn documents<T>(&mut self, name: &str, of: impl Iterator<Item = T>, write: impl Fn(&mut Self, T)) {
        self.nested(0x04, name, |list| {
            let mut number = itoa::Buffer::new();
            for (n, one) in of.enumerate() {
                list.document(number.format(n), |document| write(document, one));
            }
        });
    }

    fn nested(&mut self, kind: u8, name: &str, write: impl FnOnce(&mut Self)) {
        self.field(kind, name);
        let from = self.0.len();
        self.0.extend([0; 4]);
        write(self);
        self.end(from);
    }

    fn end(&mut self, from: usize) {
        self.0.push(0);
        let length = i32::try_from(self.0.len() - from).unwrap_or(i32::MAX);
        self.0[from..from + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// The document.
    pub fn finish(mut self) -> RawDocumentBuf {
        self.end(0);
        // Its length is right and it ends as a document ends, which is all that is looked at here.
        RawDocumentBuf::from_bytes(self.0).unwrap_or_default()
    }
}
