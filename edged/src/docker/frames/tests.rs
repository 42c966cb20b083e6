use proptest::{collection::vec, prelude::*};

use super::*;

fn frame(stream: u8, payload: &[u8]) -> Vec<u8> {
    [&head_of(stream, payload.len())[..], payload].concat()
}

/// Feeds `pieces` and returns all that comes out, and how it ends.
fn split(terminal: bool, pieces: &[&[u8]]) -> (Vec<Bytes>, Result<(), BadFrame>) {
    let mut splitter = Splitter::new(terminal);
    let mut frames = Vec::new();
    for piece in pieces {
        splitter.push(Bytes::copy_from_slice(piece));
        loop {
            match splitter.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(bad) => return (frames, Err(bad)),
            }
        }
    }
    let end = splitter.end();
    (frames, end)
}

/// `bytes` cut at these places, counted from where the last cut was.
fn cut<'a>(mut bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for length in cuts {
        let (piece, rest) = bytes.split_at((*length).min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
    }
    pieces.push(bytes);
    pieces
}

proptest! {
    #[test]
    fn frames_come_out_whole_however_they_arrive(
        payloads in vec((0..=3_u8, vec(any::<u8>(), 0..40)), 0..12),
        cuts in vec(0..30_usize, 0..60),
    ) {
        let sent: Vec<Vec<u8>> = payloads.iter().map(|(stream, payload)| frame(*stream, payload)).collect();
        let (frames, end) = split(false, &cut(&sent.concat(), &cuts));
        prop_assert_eq!(end, Ok(()));
        prop_assert_eq!(frames, sent);
    }

    #[test]
    fn whatever_comes_out_of_anything_is_a_frame(bytes in vec(any::<u8>(), 0..200), cuts in vec(0..50_usize, 0..8)) {
        let (frames, _) = split(false, &cut(&bytes, &cuts));
        for frame in &frames {
            let head = frame.first_chunk().expect("a head");
            prop_assert_eq!(frame.len(), HEAD + payload(*head).expect("a good head"));
        }
        prop_assert!(bytes.starts_with(&frames.concat()));
    }

    #[test]
    fn a_terminal_loses_nothing(bytes in vec(any::<u8>(), 0..200), cuts in vec(0..50_usize, 0..8)) {
        let (frames, end) = split(true, &cut(&bytes, &cuts));
        prop_assert_eq!(end, Ok(()));
        let payloads: Vec<&[u8]> = frames.iter().map(|frame| &frame[HEAD..]).collect();
        prop_assert_eq!(payloads.concat(), bytes);
        for frame in &frames {
            prop_assert_eq!(&frame[..HEAD], &head_of(STANDARD_OUTPUT, frame.len() - HEAD)[..]);
        }
    }
}

#[test]
fn a_frame_too_long_for_one_item_becomes_several() {
    let payload: Vec<u8> = (0..=250).cycle().take(2 * PAYLOAD_LIMIT + 5).collect();
    let sent = [frame(2, &payload), frame(1, b"next")].concat();
    for cuts in [&[][..], &[3, 70_000, 2 * PAYLOAD_LIMIT]] {
        let (frames, end) = split(false, &cut(&sent, cuts));
        assert_eq!(end, Ok(()));
        let lengths: Vec<usize> = frames.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [HEAD + PAYLOAD_LIMIT, HEAD + PAYLOAD_LIMIT, HEAD + 5, HEAD + 4]);
        assert!(frames[..3].iter().all(|frame| frame[0] == 2));
        assert_eq!([&frames[0][HEAD..], &frames[1][HEAD..], &frames[2][HEAD..]].concat(), payload);
        assert_eq!(frames[3], frame(1, b"next"));
    }
}

#[test]
fn a_terminal_that_writes_much_at_once_gets_frames_of_the_usual_size() {
    let (frames, _) = split(true, &[&vec![b'x'; TERMINAL_PAYLOAD + 1]]);
    assert_eq!(frames.iter().map(Bytes::len).collect::<Vec<_>>(), [HEAD + TERMINAL_PAYLOAD, HEAD + 1]);
}

#[test]
fn what_is_not_in_frames_is_told_apart_from_what_is_cut() {
    assert_eq!(split(false, &[b"plain text"]).1, Err(BadFrame::Head));
    assert_eq!(split(false, &[&[4, 0, 0, 0, 0, 0, 0, 1, 1]]).1, Err(BadFrame::Head));
    assert_eq!(split(false, &[&[1, 0, 0]]).1, Err(BadFrame::Cut));
    assert_eq!(split(false, &[&[1, 0, 0, 0, 0, 0, 0, 2, b'a']]).1, Err(BadFrame::Cut));
    // Four gigabytes are announced; nothing is set aside for them.
    assert_eq!(split(false, &[&[1, 0, 0, 0, 255, 255, 255, 255, b'a']]).1, Err(BadFrame::Cut));
}
