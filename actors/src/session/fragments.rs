//! Puts fragmented messages together (RFC 6455, 5.4), within a limit.

use super::close::Close;

/// Puts the fragments of one message together, up to a limit on their sum.
#[derive(Debug, Default)]
pub struct Fragments {
    parts: Option<Vec<u8>>,
}

impl Fragments {
    /// The first fragment of a text message.
    pub fn first(&mut self, part: &[u8], limit: usize) -> Result<(), Close> {
        self.parts = Some(Vec::with_capacity(part.len()));
        self.more(part, limit)
    }

    /// A further fragment.
    pub fn more(&mut self, part: &[u8], limit: usize) -> Result<(), Close> {
        let parts = self.parts.as_mut().ok_or(Close::Protocol)?;
        if parts.len() + part.len() > limit {
            self.parts = None;
            return Err(Close::TooBig);
        }
        parts.extend_from_slice(part);
        Ok(())
    }

    /// The last fragment: the whole text.
    pub fn last(&mut self, part: &[u8], limit: usize) -> Result<String, Close> {
        self.more(part, limit)?;
        let whole = self.parts.take().ok_or(Close::Protocol)?;
        String::from_utf8(whole).map_err(|_| Close::NotUtf8)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::Index};

    use super::*;

    #[test]
    fn fragments_are_put_together_up_to_the_limit() {
        let mut fragments = Fragments::default();
        fragments.first(b"pi", 4).unwrap();
        fragments.more(b"n", 4).unwrap();
        assert_eq!(fragments.last(b"g", 4).unwrap(), "ping");
        fragments.first(b"pi", 4).unwrap();
        assert_eq!(fragments.last(b"ngs", 4), Err(Close::TooBig));
        assert_eq!(fragments.more(b"x", 4), Err(Close::Protocol));
        fragments.first(&[0xff], 4).unwrap();
        assert_eq!(fragments.last(b"", 4), Err(Close::NotUtf8));
    }

    proptest! {
        /// However a text is cut, within the limit it is itself again, and over it the session ends; so do fragments that
        /// nothing began.
        #[test]
        fn a_text_cut_anywhere_is_itself_again_or_too_big(
            text in prop_oneof!["\\PC{0,40}", vec(any::<char>(), 0..40).prop_map(String::from_iter)],
            cuts in vec(any::<Index>(), 1..6),
            limit in 0..200_usize,
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.sort_unstable();
            let mut fragments = Fragments::default();
            prop_assert_eq!(fragments.more(b"", limit), Err(Close::Protocol));
            let mut from = 0;
            let mut whole = Ok(());
            for (n, to) in cuts.iter().enumerate() {
                let part = &bytes[from..*to];
                whole = whole.and_then(|()| if n == 0 { fragments.first(part, limit) } else { fragments.more(part, limit) });
                from = *to;
            }
            let whole = whole.and_then(|()| fragments.last(&bytes[from..], limit));
            if bytes.len() <= limit {
                prop_assert_eq!(whole, Ok(text));
            } else {
                prop_assert_eq!(whole, Err(Close::TooBig));
            }
            prop_assert_eq!(fragments.last(b"", limit), Err(Close::Protocol));
        }
    }
}
