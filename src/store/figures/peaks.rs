//! Peaks: where a room was so much louder than around it that someone may want to cut a clip there.

/// What a peak is.
#[derive(Clone, Copy, Debug)]
pub struct PeakRule {
    /// How many buckets around one tell what is usual there, itself included.
    pub window: usize,
    /// From so many percent of the usual rate on; more than 100.
    pub percent: u64,
}

/// Buckets that follow each other and are all above what is usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peak {
    /// The first bucket.
    pub from: usize,
    /// How many there are.
    pub buckets: usize,
    /// The loudest of them.
    pub top: usize,
    /// Messages in it.
    pub messages: u64,
    /// The usual number of messages there: the median around it.
    pub usual: u64,
}

impl Peak {
    /// How many times the usual rate, to two places; a silent room counts as one message a bucket.
    pub fn ratio(&self) -> f64 {
        // Counts of messages are far below 2^53.
        self.percent() as f64 / 100.0
    }

    fn percent(&self) -> u64 {
        self.messages * 100 / self.usual.max(1)
    }
}

#[cfg(test)]
thread_local! {
    /// How many series this thread has looked at.
    pub(super) static LOOKED_AT: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// The peaks of a series, the greatest first, then the earlier one; at most `limit`.
///
/// A bucket is above what is usual when it has `rule.percent` of the median around it and also exceeds it by four times its square
/// root, which chance alone does about once in 30,000 buckets where messages come independently of each other.
pub fn peaks(series: &[u64], rule: PeakRule, limit: usize) -> Vec<Peak> {
    #[cfg(test)]
    LOOKED_AT.set(LOOKED_AT.get() + 1);
    let mut found: Vec<Peak> = Vec::new();
    for (bucket, &messages) in series.iter().enumerate() {
        let usual = usual(series, bucket, rule.window);
        let above = messages.saturating_sub(usual);
        let is_loud = messages * 100 >= usual.max(1) * rule.percent;
        if !is_loud || above * above < 16 * usual.max(1) {
            continue;
        }
        match found.last_mut().filter(|last| last.from + last.buckets == bucket) {
            Some(last) => {
                last.buckets += 1;
                if messages > last.messages {
                    (last.top, last.messages, last.usual) = (bucket, messages, usual);
                }
            }
            None => found.push(Peak {
                from: bucket,
                buckets: 1,
                top: bucket,
                messages,
                usual,
            }),
        }
    }
    found.sort_by_key(|peak| (std::cmp::Reverse(peak.percent()), peak.from));
    found.truncate(limit);
    found
}

/// The median of the buckets around one; near an end the window is moved inside, so that it keeps its length.
fn usual(series: &[u64], bucket: usize, window: usize) -> u64 {
    let length = window.clamp(1, series.len());
    let from = bucket.saturating_sub(length / 2).min(series.len() - length);
    let mut around = series[from..from + length].to_vec();
    let middle = length / 2;
    *around.select_nth_unstable(middle).1
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: PeakRule = PeakRule {
        window: 9,
        percent: 200,
    };

    #[test]
    fn a_burst_is_one_peak_and_a_slow_rise_is_none() {
        let mut series: Vec<u64> = (0..100).map(|n| 20 + n).collect();
        series[50] = 300;
        series[51] = 400;
        let found = peaks(&series, RULE, 10);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].from, found[0].buckets, found[0].top), (50, 2, 51));
        assert_eq!(found[0].messages, 400);
        assert!((65..80).contains(&found[0].usual), "{found:?}");
        assert!((500..620).contains(&found[0].percent()), "{found:?}");
    }

    #[test]
    fn a_few_messages_in_a_silent_room_are_no_peak() {
        assert_eq!(peaks(&[0, 0, 3, 0, 0, 0, 1, 0, 0, 0], RULE, 10), []);
        assert_eq!(peaks(&[0, 0, 5, 0, 0, 0, 1, 0, 0, 0], RULE, 10).len(), 1);
        assert_eq!(peaks(&[], RULE, 10), []);
        assert_eq!(peaks(&[7], RULE, 10), []);
    }

    #[test]
    fn the_greatest_come_first_and_no_more_than_asked_for() {
        let mut series = vec![10; 60];
        (series[10], series[30], series[50]) = (50, 90, 50);
        let found: Vec<_> = peaks(&series, RULE, 2).iter().map(|peak| peak.top).collect();
        assert_eq!(found, [30, 10]);
    }
}
