use std::sync::Arc;

use super::*;

const RESUME: i64 = 300_000;

struct Room {
    open: Option<Broadcast>,
    kept: Vec<Broadcast>,
    next_id: u128,
    epoch: Epoch,
    last: Seq,
    /// Of the numbers up to `last`, those that may yet be taken back.
    in_flight: u64,
    /// For how long it has not been live by a clock that nobody sets.
    away_ms: i64,
    /// Until when it was looked after and nobody said that it was not live.
    watched_ms: Option<i64>,
    /// How long ago it was seen to be live by a clock that nobody sets.
    unseen_ms: Option<i64>,
}

impl Room {
    fn new() -> Self {
        Self {
            open: None,
            kept: Vec::new(),
            next_id: 1,
            epoch: Epoch(Arc::from("a")),
            last: Seq(0),
            in_flight: 0,
            away_ms: 0,
            watched_ms: None,
            unseen_ms: None,
        }
    }

    fn hear(&mut self, liveness: Liveness, now_ms: i64) {
        let heard = Heard {
            presenter: PresenterIdx::new(12).unwrap(),
            liveness,
            now_ms,
            away_ms: self.away_ms,
            watched_ms: self.watched_ms,
            unseen_ms: self.unseen_ms,
            epoch: &self.epoch,
            committed: Seq(self.last.0 - self.in_flight),
            last: self.last,
            resume_ms: RESUME,
        };
        let id = self.next_id;
        for record in follow(&mut self.open, &heard, || Uuid::from_u128(id)) {
            self.next_id = id + 1;
            match self.kept.iter_mut().find(|kept| kept.id == record.id) {
                Some(kept) => {
                    assert!(record.version > kept.version, "a change is a new version");
                    *kept = record;
                }
                None => self.kept.push(record),
            }
        }
    }

    fn segments(&self, n: usize) -> Vec<(i64, Option<i64>)> {
        self.kept[n].segments.iter().map(|s| (s.from_ms, s.to_ms)).collect()
    }

    fn spans(&self, n: usize) -> Vec<(&str, u64, Option<u64>)> {
        let spans = self.kept[n].spans.iter();
        spans
            .map(|s| (&*s.epoch.0, s.after.0, s.through.map(|seq| seq.0)))
            .collect()
    }
}

fn live() -> Liveness {
    Liveness {
        live: true,
        ..Liveness::default()
    }
}

fn away() -> Liveness {
    Liveness::default()
}

#[test]
fn a_broadcast_is_from_going_live_to_ending_and_an_interruption_is_no_end() {
    let mut room = Room::new();
    room.hear(away(), 500);
    assert_eq!(room.kept, []);
    room.hear(live(), 1_000);
    room.last = Seq(10);
    room.hear(live(), 5_000);
    room.hear(away(), 11_000);
    room.hear(away(), 13_000);
    assert_eq!(room.kept[0].ended_at_ms, None);
    room.hear(live(), 21_000);
    room.last = Seq(14);
    room.hear(away(), 31_000);
    room.hear(away(), 30_999 + RESUME);
    assert_eq!(room.kept[0].ended_at_ms, None);
    room.hear(away(), 31_000 + RESUME);
    assert_eq!((room.kept.len(), room.kept[0].ended_at_ms), (1, Some(31_000)));
    assert_eq!(room.open, None);
    assert_eq!(room.segments(0), [(1_000, Some(11_000)), (21_000, Some(31_000))]);
    assert_eq!(room.spans(0), [("a", 0, Some(14))]);
    room.last = Seq(20);
    room.hear(live(), 900_000);
    assert_eq!((room.kept.len(), room.spans(1)), (2, vec![("a", 20, None)]));
}

#[test]
fn rule_05_a_broadcast_that_is_away_ends_in_its_time_though_the_clock_was_set_back() {
    let mut room = Room::new();
    room.hear(live(), 1_000);
    room.hear(away(), 11_000);
    room.away_ms = RESUME - 1;
    room.hear(away(), 11_000 - 2 * RESUME);
    assert_eq!(room.kept[0].ended_at_ms, None);
    room.away_ms = RESUME;
    room.hear(away(), 11_001 - 2 * RESUME);
    assert_eq!(room.kept[0].ended_at_ms, Some(11_000));
    assert_eq!(room.segments(0), [(1_000, Some(11_000))]);
}

#[test]
fn rule_05_a_broadcast_goes_on_until_it_was_last_seen_at_least_though_the_clock_was_set_back() {
    let ahead = system_ms() + 3_600_000;
    let mut room = Room::new();
    room.hear(live(), ahead);
    assert_eq!(room.kept[0].until_ms(), ahead);
    room.hear(away(), ahead + 1_000);
    room.away_ms = RESUME;
    room.hear(away(), ahead + 1_000 + RESUME);
    assert_eq!(room.kept[0].until_ms(), ahead + 1_000);
}

#[test]
fn messages_before_a_time_may_come_until_it_is_over_and_for_a_moment_after_that() {
    let ahead = system_ms() + 3_600_000;
    let mut room = Room::new();
    room.hear(live(), ahead);
    let before = |room: &Room, at_ms: i64, settled_ms: i64| room.kept[0].goes_on_before(at_ms, settled_ms);
    let going_on = |room: &Room, at_ms: i64| before(room, at_ms, i64::MAX);
    assert!(going_on(&room, i64::MAX) && going_on(&room, ahead) && going_on(&room, ahead - LATE_MS + 1));
    assert!(!going_on(&room, ahead - LATE_MS) && !going_on(&room, i64::MIN));
    // One is on its way for longer, as on a disk that hangs: it may have been sent at this time.
    let sent = ahead - 2 * LATE_MS;
    assert!(before(&room, ahead - LATE_MS, sent) && before(&room, sent + 1, sent) && !before(&room, sent, sent));
    // It may be live again.
    room.hear(away(), ahead);
    assert!(going_on(&room, i64::MAX));
    room.away_ms = RESUME;
    room.hear(away(), ahead + 1);
    assert!(room.open.is_none() && !going_on(&room, i64::MAX));
}

#[test]
fn what_names_a_broadcast_decides_which_one_it_is() {
    let named = |room_idx, started_at_ms| Liveness {
        live: true,
        room_idx,
        started_at_ms,
        ended_at_ms: None,
    };
    let mut room = Room::new();
    room.hear(named(Some(7), Some(400)), 1_000);
    assert_eq!(room.segments(0), [(400, None)]);
    // Long away, and still the same.
    room.hear(named(Some(7), Some(400)), 1_000 + 10 * RESUME);
    assert_eq!(room.kept.len(), 1);
    // Not away at all, and another one.
    room.last = Seq(3);
    room.hear(named(Some(8), Some(400)), 1_001 + 10 * RESUME);
    assert_eq!(room.kept.len(), 2);
    assert_eq!(room.kept[0].ended_at_ms, Some(1_000 + 10 * RESUME));
    assert_eq!(room.spans(0), [("a", 0, Some(3))]);
    room.hear(named(Some(8), Some(999)), 1_002 + 10 * RESUME);
    assert_eq!(room.kept.len(), 3);
    // Its end is told: there is nothing to wait for.
    let told = Liveness {
        ended_at_ms: Some(1_002 + 10 * RESUME),
        ..away()
    };
    room.hear(told, 5_000 + 10 * RESUME);
    assert_eq!(room.kept[2].ended_at_ms, Some(1_002 + 10 * RESUME));
    assert_eq!(room.open, None);
}

#[test]
fn a_start_that_is_told_later_is_where_it_began_but_not_in_the_future_nor_behind_its_first_stretch() {
    let told = |started_at_ms| Liveness {
        started_at_ms: Some(started_at_ms),
        ..live()
    };
    for (start_ms, from_ms) in [(400, 400), (2_500, 2_500), (9_000, 3_000)] {
        let mut room = Room::new();
        room.hear(live(), 1_000);
        room.hear(told(start_ms), 3_000);
        assert_eq!((room.kept.len(), room.segments(0)), (1, vec![(from_ms, None)]));
        // It names the broadcast, and says nothing new.
        let version = room.kept[0].version;
        room.hear(told(start_ms), 4_000);
        assert_eq!((room.kept.len(), room.kept[0].version), (1, version));
    }
    // What is told may be the start of the stretch that goes on: the first one stays what it was.
    for (start_ms, from_ms) in [
        (400, 400),
        (1_200, 1_200),
        (2_000, 1_000),
        (2_500, 1_000),
        (3_000, 1_000),
    ] {
        let mut room = Room::new();
        room.hear(live(), 1_000);
        room.hear(away(), 2_000);
        room.hear(told(start_ms), 3_000);
        assert_eq!(room.segments(0), [(from_ms, Some(2_000)), (3_000, None)]);
        let broadcast = room.open.as_ref().unwrap();
        assert_eq!(broadcast.offset_ms(1_700, None), 1_700 - from_ms, "{start_ms}");
        // It names the broadcast all the same.
        assert_eq!(broadcast.reported_start_ms, Some(start_ms));
    }
}

#[test]
fn a_start_that_is_told_later_shifts_no_offset_from_a_start_that_it_was_corrected_to() {
    let mut room = Room::new();
    room.hear(live(), 1_000);
    let before = room.open.clone().unwrap();
    let told = Liveness {
        started_at_ms: Some(400),
        ..live()
    };
    room.hear(told, 5_000);
    let after = room.open.clone().unwrap();
    assert_eq!(
        (before.offset_ms(3_000, None), after.offset_ms(3_000, None)),
        (2_000, 2_600)
    );
    for corrected in [200, 600, 1_500] {
        let offsets = [&before, &after].map(|one| one.offset_ms(3_000, Some(corrected)));
        assert_eq!(offsets, [3_000 - corrected; 2], "{corrected}");
    }
}

#[test]
fn an_end_that_is_told_later_ends_it_then_but_not_before_its_last_stretch_nor_in_the_future() {
    for (end_ms, at_ms) in [(9_000, 9_000), (12_000, 12_000), (100, 5_000), (99_000, 15_000)] {
        let mut room = Room::new();
        room.hear(live(), 1_000);
        room.hear(away(), 4_000);
        room.hear(live(), 5_000);
        room.last = Seq(3);
        room.hear(away(), 11_000);
        let version = room.kept[0].version;
        let told = Liveness {
            ended_at_ms: Some(end_ms),
            ..away()
        };
        room.last = Seq(4);
        room.hear(told, 15_000);
        assert_eq!(
            (room.open.as_ref(), room.kept[0].ended_at_ms),
            (None, Some(at_ms)),
            "{end_ms}"
        );
        assert_eq!(
            room.segments(0),
            [(1_000, Some(4_000)), (5_000, Some(at_ms))],
            "{end_ms}"
        );
        // What was said meanwhile is not of it.
        assert_eq!(
            (room.spans(0), room.kept[0].version),
            (vec![("a", 0, Some(3))], version + 1)
        );
    }
}

#[test]
fn a_broadcast_goes_on_however_long_nobody_answers_unless_it_was_away_before() {
    let mut room = Room::new();
    room.hear(live(), 1_000);
    room.watched_ms = Some(1_000 + 9 * RESUME);
    room.hear(live(), 1_000 + 10 * RESUME);
    assert_eq!((room.kept.len(), room.segments(0)), (1, vec![(1_000, None)]));
    // Said to be away, and of unknown fate for longer than that may be.
    room.hear(away(), 2_000 + 10 * RESUME);
    room.watched_ms = Some(2_000 + 12 * RESUME);
    room.hear(live(), 2_000 + 12 * RESUME);
    assert_eq!(
        (room.kept.len(), room.kept[0].ended_at_ms),
        (2, Some(2_000 + 10 * RESUME))
    );
}

#[test]
fn a_server_that_was_stopped_for_long_in_an_outage_begins_another_as_behind_a_restart() {
    let mut room = Room::new();
    room.hear(live(), 1_000);
    let mut watched = Watched::begin(1_000, 0);
    for boot_ms in [RESUME, 2 * RESUME] {
        watched = watched.on(1_000 + boot_ms, boot_ms, RESUME);
        assert_eq!(watched.until_ms, 1_000 + boot_ms);
    }
    for boot_ms in [1 + 3 * RESUME, 2 + 3 * RESUME] {
        watched = watched.on(1_000 + boot_ms, boot_ms, RESUME);
        assert_eq!(watched.until_ms, 1_000 + 2 * RESUME);
    }
    room.watched_ms = Some(watched.until_ms);
    room.hear(live(), 1_003 + 3 * RESUME);
    assert_eq!((room.kept.len(), room.kept[0].ended_at_ms), (2, Some(1_000)));
}

#[test]
fn a_clock_that_is_set_ends_no_broadcast_that_is_looked_after() {
    let mut room = Room::new();
    room.hear(live(), 1_000);
    let mut watched = Watched::begin(1_000, 0);
    for (n, now_ms) in [100 * RESUME, 100 * RESUME + 1, 2_000].into_iter().enumerate() {
        watched = watched.on(now_ms, i64::try_from(n).unwrap(), RESUME);
        room.watched_ms = Some(watched.until_ms);
        room.hear(live(), now_ms);
    }
    assert_eq!((room.kept.len(), room.segments(0)), (1, vec![(1_000, None)]));
}

#[test]
fn rule_05_a_broadcast_that_was_live_a_moment_ago_is_interrupted_and_not_ended_though_the_clock_was_set_ahead() {
    let mut room = Room::new();
    room.hear(live(), 1_000);
    room.unseen_ms = Some(5_000);
    let ahead = 6_000 + 100 * RESUME;
    room.hear(away(), ahead);
    assert_eq!(
        (room.kept[0].ended_at_ms, room.segments(0)),
        (None, vec![(1_000, Some(ahead))])
    );
    room.unseen_ms = None;
    room.hear(live(), ahead + RESUME);
    assert_eq!(room.kept.len(), 1);
}

#[test]
fn a_broadcast_that_nobody_saw_for_long_has_ended_when_it_was_last_seen_whatever_the_clock_says() {
    for now_ms in [2_000, 1_001 + RESUME] {
        let mut room = Room::new();
        room.hear(live(), 1_000);
        let watched = Watched::begin(1_000, 0);
        let watched = (1..=3).fold(watched, |watched, n| watched.on(now_ms, n * RESUME / 2, RESUME));
        room.unseen_ms = Some(watched.unseen_ms(3 * RESUME / 2));
        room.hear(away(), now_ms);
        assert_eq!(room.segments(0), [(1_000, Some(1_000))], "{now_ms}");
    }
}

#[test]
fn a_server_that_was_away_for_long_begins_another_and_for_a_moment_goes_on() {
    let mut room = Room::new();
    room.hear(live(), 1_000);
    room.last = Seq(9);
    room.epoch = Epoch(Arc::from("b"));
    room.hear(live(), 60_000);
    assert_eq!(room.kept.len(), 1);
    assert_eq!(room.spans(0), [("a", 0, None), ("b", 9, None)]);
    assert_eq!(room.segments(0), [(1_000, None)]);
    room.hear(live(), 60_001 + RESUME);
    assert_eq!(room.kept.len(), 2);
    assert_eq!(room.kept[0].ended_at_ms, Some(60_000));
    assert_eq!(room.segments(0), [(1_000, Some(60_000))]);
    // Away, and over meanwhile: it was live until it was last seen.
    room.hear(away(), 60_001 + 3 * RESUME);
    assert_eq!(room.kept[1].ended_at_ms, Some(60_001 + RESUME));
}

#[test]
fn an_interruption_does_not_shift_the_offset() {
    let mut room = Room::new();
    room.hear(live(), 1_000);
    room.hear(away(), 11_000);
    room.hear(live(), 21_000);
    let broadcast = room.open.clone().unwrap();
    let rows = [
        (0, 0),
        (1_000, 0),
        (3_500, 2_500),
        (11_000, 10_000),
        (15_000, 10_000),
        (21_000, 10_000),
        (22_000, 11_000),
        (121_000, 110_000),
    ];
    for (at, offset) in rows {
        assert_eq!(broadcast.offset_ms(at, None), offset, "{at}");
    }
    // The video began two seconds later, or one earlier.
    assert_eq!(broadcast.offset_ms(3_500, Some(3_000)), 500);
    assert_eq!(broadcast.offset_ms(3_500, Some(0)), 3_500);
    // Or a second after the interruption, or within it: that does not count either way.
    assert_eq!(broadcast.offset_ms(22_000, Some(22_000)), 0);
    assert_eq!(broadcast.offset_ms(25_000, Some(22_000)), 3_000);
    assert_eq!(broadcast.offset_ms(25_000, Some(15_000)), 4_000);
}

#[test]
fn only_what_was_said_before_a_start_that_was_corrected_to_later_is_before_the_video() {
    let mut room = Room::new();
    room.hear(live(), 1_000);
    room.hear(away(), 11_000);
    room.hear(live(), 21_000);
    let broadcast = room.open.clone().unwrap();
    let offsets = |corrected| [0, 1_000, 2_999, 3_000, 11_000, 22_000].map(|at| broadcast.offset_ms(at, corrected));
    assert_eq!(offsets(None), [0, 0, 1_999, 2_000, 10_000, 11_000]);
    assert_eq!(offsets(Some(500)), [500, 500, 2_499, 2_500, 10_500, 11_500]);
    assert_eq!(offsets(Some(3_000)), [-2_000, -2_000, -1, 0, 8_000, 9_000]);
    // Behind the interruption, which does not count.
    assert_eq!(offsets(Some(21_500)), [-10_500, -10_500, -8_501, -8_500, -500, 500]);
    for (corrected, from_ms) in [
        (None, i64::MIN),
        (Some(500), i64::MIN),
        (Some(3_000), 3_000),
        (Some(15_000), 11_000),
        (Some(21_500), 21_500),
    ] {
        assert_eq!(broadcast.time_at(0, corrected), Some(from_ms), "{corrected:?}");
    }
    assert_eq!(
        (
            broadcast.length_ms(3_500, Some(3_000)),
            broadcast.length_ms(2_000, Some(3_000))
        ),
        (500, 0)
    );
}

#[test]
fn rule_01_a_broadcast_that_begins_while_numbers_may_be_taken_back_has_those_that_are_given_again() {
    let mut room = Room::new();
    room.hear(live(), 1_000);
    // Five messages are on their way when the next one begins; their commit fails, and their numbers go to its messages.
    (room.last, room.in_flight) = (Seq(15), 5);
    let another = Liveness {
        room_idx: Some(8),
        ..live()
    };
    room.hear(another, 2_000 + RESUME);
    assert_eq!(room.spans(1), [("a", 10, None)]);
}

#[test]
fn time_at_is_the_earliest_time_of_an_offset() {
    let mut room = Room::new();
    room.hear(live(), 1_000);
    room.hear(away(), 11_000);
    room.hear(live(), 21_000);
    let open = room.open.clone().unwrap();
    room.hear(away(), 31_000);
    let closed = room.open.clone().unwrap();
    for correction in [None, Some(500), Some(4_000), Some(30_000)] {
        for broadcast in [&open, &closed] {
            for offset in (-25_000..25_000).step_by(250) {
                let at = broadcast.time_at(offset, correction);
                match at {
                    Some(i64::MIN) => assert!(broadcast.offset_ms(0, correction) >= offset),
                    Some(at) => {
                        assert!(broadcast.offset_ms(at, correction) >= offset, "{offset} {at}");
                        assert!(broadcast.offset_ms(at - 1, correction) < offset, "{offset} {at}");
                    }
                    None => assert!(broadcast.offset_ms(i64::MAX / 4, correction) < offset, "{offset}"),
                }
            }
        }
    }
}

#[test]
fn one_that_was_left_open_goes_on_unless_a_later_one_does_or_one_that_is_live_here() {
    let mut room = Room::new();
    room.hear(live(), 1_000);
    let left = room.open.take().unwrap();
    room.last = Seq(5);
    room.hear(live(), 2_000_000);
    let mut open = None;
    let later = room.open.clone().unwrap();
    assert!(left.id < later.id);
    assert_eq!(take_up(&mut open, later.clone(), false), None);
    assert_eq!(open, Some(later.clone()));
    assert_eq!(take_up(&mut open, later.clone(), false), None, "the same one");
    let ended = take_up(&mut open, left.clone(), false).unwrap();
    assert_eq!(open.as_ref(), Some(&later));
    assert_eq!((ended.id, ended.version), (left.id, left.version + 1));
    assert_eq!((ended.ended_at_ms, ended.segments[0].to_ms), (Some(1_000), Some(1_000)));
    // What came behind it is the later one's.
    assert_eq!(ended.spans[0].through, Some(Seq(5)));
    // Whichever is told first.
    let mut open = Some(left.clone());
    assert_eq!(take_up(&mut open, later.clone(), false), Some(ended));
    assert_eq!(open.as_ref(), Some(&later));
    // Nor does one that is live here, whatever another server left open of its room since.
    let mut open = Some(left.clone());
    let ended = take_up(&mut open, later.clone(), true).unwrap();
    assert_eq!((ended.id, ended.ended_at_ms), (later.id, Some(2_000_000)));
    assert_eq!(open, Some(left));
}

#[test]
fn what_it_had_in_a_numbering_that_went_further_than_this_one_began_hides_nothing_of_this_one() {
    let mut room = Room::new();
    room.last = Seq(1000);
    room.hear(live(), 1_000);
    let mut broadcast = room.open.take().unwrap();
    let [before, now] = [broadcast.spans[0].epoch.clone(), Epoch("now".into())];
    assert_eq!(broadcast.begins_after(&before), Seq(1000));
    assert_eq!(broadcast.begins_after(&now), Seq(1000));
    broadcast.spans.push(Span {
        epoch: now.clone(),
        after: Seq(900),
        through: None,
    });
    assert_eq!(broadcast.begins_after(&now), Seq(900));
    broadcast.spans[1].after = Seq(1100);
    assert_eq!(
        broadcast.begins_after(&now),
        Seq(1000),
        "what was missed before is told"
    );
}

#[test]
fn a_room_that_flips_makes_no_record_without_end() {
    let mut room = Room::new();
    let most = i64::try_from(SEGMENTS_MAX).unwrap();
    for n in 0..most + 10 {
        room.hear(live(), n * 20);
        room.hear(away(), n * 20 + 10);
    }
    let segments = room.segments(0);
    assert_eq!((room.kept.len(), segments.len()), (1, SEGMENTS_MAX));
    assert_eq!(segments[0], (0, Some(10)));
    assert_eq!(
        segments[SEGMENTS_MAX - 1],
        ((most - 1) * 20, Some((most + 9) * 20 + 10)),
        "the last one goes on"
    );
}

#[test]
fn a_broadcast_that_nobody_knows_any_more_has_ended_when_it_was_last_seen_to_be_live() {
    let mut room = Room::new();
    room.hear(live(), 1_000);
    room.hear(live(), 5_000);
    let version = room.open.as_ref().unwrap().version;
    let ended = end_unknown(&mut room.open, &room.epoch, Seq(7)).unwrap();
    assert_eq!(room.open, None);
    assert_eq!((ended.ended_at_ms, ended.version), (Some(5_000), version + 1));
    assert_eq!(ended.segments[0].to_ms, Some(5_000));
    assert_eq!(ended.spans[0].through, Some(Seq(7)));
    assert_eq!(end_unknown(&mut room.open, &room.epoch, Seq(7)), None);
}

#[test]
fn it_goes_on_from_what_another_server_made_of_it_and_each_stretch_of_a_numbering_ends_where_the_next_begins() {
    let mut room = Room::new();
    room.hear(live(), 1_000);
    room.last = Seq(5);
    let mut theirs = room.open.clone().unwrap();
    theirs.version += 1 << 32;
    theirs.seen_at_ms = 4_000;
    theirs.segments[0].to_ms = Some(2_000);
    theirs.segments.push(Segment {
        from_ms: 3_000,
        to_ms: None,
    });
    theirs.spans.push(Span {
        epoch: Epoch("b".into()),
        after: Seq(5),
        through: None,
    });
    let open = room.open.as_mut().unwrap();
    open.go_on_from(theirs.clone(), &room.epoch);
    assert_eq!(open.version, theirs.version + TAKEN_UP);
    room.hear(live(), 5_000);
    let [before, elsewhere] = [("a", 0, Some(5)), ("b", 5, None)];
    assert_eq!(room.spans(0), [before, elsewhere, ("a", 5, None)]);
    assert_eq!(room.segments(0), [(1_000, Some(2_000)), (3_000, None)]);
    room.last = Seq(9);
    room.hear(away(), 6_000);
    assert_eq!(room.spans(0), [before, elsewhere, ("a", 5, Some(9))]);
    // The other server again, with what it has of it.
    let ours = room.open.clone().unwrap();
    let epoch = Epoch("b".into());
    // Its spool is some versions ahead of what it stored.
    theirs.version += 3_000;
    assert!(theirs.version < ours.version);
    theirs.go_on_from(ours.clone(), &epoch);
    assert_eq!((theirs.spans, theirs.version), (ours.spans, ours.version + TAKEN_UP));
}
