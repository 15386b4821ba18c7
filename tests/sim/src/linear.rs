//! Whether a history of one register is linearizable (Wing and Gong, with Lowe's memory of visited
//! configurations): there is an order of its calls, each between its begin and its end, in which each
//! gives the answer that was seen.
//!
//! A register holds a value or nothing. A call without an answer may take effect at any time after
//! its begin, or never.

use std::collections::HashSet;

/// What was asked of a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Put this value in, if there is none.
    Create(u64),
    /// Take this value out, if it is the one.
    Delete(u64),
    /// What is there?
    Read,
}

/// What was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It was done.
    Done,
    /// It was refused: there was another value, or none.
    Refused,
    /// This is there.
    Value(Option<u64>),
    /// It was not done, and will not be.
    NotDone,
    /// Nobody knows.
    Unknown,
}

/// A call. Times are places in the order in which everything happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// When it was made.
    pub begin: u64,
    /// When its answer came.
    pub end: u64,
    /// What was asked.
    pub ask: Ask,
    /// What was answered.
    pub answer: Answer,
}

/// The value after a call, if the call can give that answer with `value` there.
fn step(value: Option<u64>, call: &Call) -> Option<Option<u64>> {
    let (done, after) = match call.ask {
        Ask::Create(new) => (value.is_none(), Some(new)),
        Ask::Delete(old) => (value == Some(old), None),
        Ask::Read => {
            let fits = matches!(call.answer, Answer::Unknown | Answer::Value(_))
                && (call.answer == Answer::Unknown || call.answer == Answer::Value(value));
            return fits.then_some(value);
        }
    };
    match call.answer {
        Answer::NotDone => Some(value),
        Answer::Done => done.then_some(after),
        Answer::Refused => (!done).then_some(value),
        Answer::Unknown => Some(if done { after } else { value }),
        Answer::Value(_) => None,
    }
}

/// Whether that history can be, from an empty register on.
pub fn is_linearizable(calls: &[Call]) -> bool {
    let mut calls = calls.to_vec();
    calls.sort_by_key(|call| call.begin);
    // What is not known may as well never have ended.
    for call in &mut calls {
        if call.answer == Answer::Unknown {
            call.end = u64::MAX;
        }
    }
    let mut seen: HashSet<(Vec<u64>, Option<u64>)> = HashSet::new();
    let mut stack = vec![(vec![0_u64; calls.len().div_ceil(64)], None)];
    while let Some((done, value)) = stack.pop() {
        let open = |at: &usize| done[at / 64] & (1 << (at % 64)) == 0;
        let left = || (0..calls.len()).filter(open);
        // Nothing may come before what had ended when it began.
        let Some(first_end) = left().map(|at| calls[at].end).min() else { return true };
        if first_end == u64::MAX {
            return true;
        }
        for at in left().take_while(|at| calls[*at].begin <= first_end) {
            let Some(after) = step(value, &calls[at]) else { continue };
            let mut next = done.clone();
            next[at / 64] |= 1 << (at % 64);
            if seen.insert((next.clone(), after)) {
                stack.push((next, after));
            }
        }
    }
    calls.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(begin: u64, end: u64, ask: Ask, answer: Answer) -> Call {
        Call { begin, end, ask, answer }
    }

    #[test]
    fn one_after_the_other() {
        let mut calls = vec![
            call(1, 2, Ask::Read, Answer::Value(None)),
            call(3, 4, Ask::Create(1), Answer::Done),
            call(5, 6, Ask::Create(2), Answer::Refused),
            call(7, 8, Ask::Read, Answer::Value(Some(1))),
            call(9, 10, Ask::Delete(1), Answer::Done),
            call(11, 12, Ask::Read, Answer::Value(None)),
        ];
        assert!(is_linearizable(&calls));
        calls[5].answer = Answer::Value(Some(1));
        assert!(!is_linearizable(&calls), "a stale read");
        assert!(is_linearizable(&[]));
    }

    #[test]
    fn at_the_same_time() {
        let both = |first, second| {
            is_linearizable(&[
                call(1, 5, Ask::Create(1), first),
                call(2, 4, Ask::Create(2), second),
                call(6, 7, Ask::Read, Answer::Value(Some(2))),
            ])
        };
        assert!(both(Answer::Refused, Answer::Done));
        assert!(!both(Answer::Done, Answer::Done), "only one can create");
        assert!(!both(Answer::Done, Answer::Refused));
    }

    #[test]
    fn what_is_not_known_may_come_late_or_never() {
        let late = |value| {
            is_linearizable(&[
                call(1, 2, Ask::Create(1), Answer::Unknown),
                call(3, 4, Ask::Read, Answer::Value(None)),
                call(5, 6, Ask::Read, Answer::Value(value)),
            ])
        };
        assert!(late(None) && late(Some(1)));
        assert!(!late(Some(2)), "nobody has put it there");
        let back = [
            call(1, 2, Ask::Create(1), Answer::Unknown),
            call(3, 4, Ask::Read, Answer::Value(Some(1))),
            call(5, 6, Ask::Read, Answer::Value(None)),
        ];
        assert!(!is_linearizable(&back), "what was seen does not go away by itself");
    }

    #[test]
    fn a_lost_write() {
        let lost =
            [call(1, 2, Ask::Create(1), Answer::Done), call(3, 4, Ask::Create(2), Answer::Done)];
        assert!(!is_linearizable(&lost));
    }
}
