//! Frames that wait while their session's token waits for its key.
//!
//! How many there are is bounded by what an honest client has to say meanwhile: an acknowledgement for each event that it was
//! sent, which its credit bounds, and what it may send in a second besides. What is over closes the session (1008).

use bytestring::ByteString;

use super::parts::SessionConfig;

/// Bytes of an acknowledgement, with some to spare.
const ACK_BYTES: usize = 64;

/// In the order in which they came.
pub(super) struct HeldFrames {
    /// The token's own frame is the first.
    frames: Vec<ByteString>,
    /// Bytes of the others.
    bytes: usize,
}

impl HeldFrames {
    /// Begins with the frame that has the token.
    pub(super) fn behind(text: &str) -> Self {
        Self {
            frames: vec![text.into()],
            bytes: 0,
        }
    }

    /// Keeps one more; `false`: it is one too many.
    pub(super) fn take(&mut self, text: &str, config: &SessionConfig) -> bool {
        let frames = config.mailbox.saturating_add(config.client_frames_per_second as usize);
        let bytes = config
            .max_frame_bytes
            .saturating_add(config.mailbox.saturating_mul(ACK_BYTES));
        self.bytes = self.bytes.saturating_add(text.len());
        if self.frames.len() > frames || self.bytes > bytes {
            return false;
        }
        self.frames.push(text.into());
        true
    }

    /// All of them, in their order.
    pub(super) fn frames(self) -> Vec<ByteString> {
        self.frames
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn as_many_wait_as_an_honest_client_has_to_say_and_no_more() {
        let config = SessionConfig {
            mailbox: 8,
            keepalive: Duration::ZERO,
            keepalive_missed: 0,
            max_frame_bytes: 1000,
            hello: Duration::ZERO,
            close_on_expiry: true,
            client_frames_per_second: 4,
            stall: Duration::ZERO,
            close_linger: Duration::ZERO,
        };
        let mut held = HeldFrames::behind("hello");
        for n in 0..12 {
            assert!(held.take("ack", &config), "{n}");
        }
        assert!(!held.take("ack", &config));
        assert_eq!(held.frames().len(), 13);
        let mut held = HeldFrames::behind("hello");
        assert!(held.take(&"x".repeat(1000), &config));
        assert!(held.take(&"x".repeat(512), &config));
        assert!(!held.take("x", &config));
    }
}
