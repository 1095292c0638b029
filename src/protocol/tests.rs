use super::*;
use proptest::prelude::*;

fn lines(chunks: &[&[u8]]) -> Vec<Result<String, &'static str>> {
    let mut splitter = Splitter::default();
    chunks.iter().flat_map(|c| splitter.push(c)).collect()
}

#[test]
fn every_word_is_accepted_and_read_back() {
    let a = || Address::parse("127.0.0.1:8080").unwrap();
    for word in [
        ServerWord::Ready(a()),
        ServerWord::Takedown(a()),
        ServerWord::Released(a()),
        ServerWord::Up,
        ServerWord::Fail("no database".into()),
    ] {
        assert_eq!(ServerWord::parse(&word.to_string()), Ok(word));
    }
    for word in [
        PeerWord::Peer(PEER_VERSION),
        PeerWord::Claim,
        PeerWord::Takedown(a()),
        PeerWord::Drain,
        PeerWord::Stay,
        PeerWord::Stop,
        PeerWord::Down(a()),
        PeerWord::Commit,
        PeerWord::Reload(Surroundings::Own),
        PeerWord::Reload(Surroundings::Callers),
        PeerWord::Status,
    ] {
        assert_eq!(PeerWord::parse(&word.to_string()), Ok(word));
    }
    for word in [
        HolderWord::Peer(PEER_VERSION),
        HolderWord::Holds(a()),
        HolderWord::Sockets(2),
        HolderWord::Waits("it is not up yet".into()),
        HolderWord::Locked,
        HolderWord::Released(a()),
        HolderWord::Refused("no".into()),
        HolderWord::Gone,
        HolderWord::Reloaded,
        HolderWord::Said("| boom".into()),
        HolderWord::Failed(124, "late".into()),
        HolderWord::Field("state".into(), "serving".into()),
        HolderWord::End,
        HolderWord::Error("unknown word".into()),
    ] {
        assert_eq!(HolderWord::parse(&word.to_string()), Ok(word));
    }
    for word in [
        CopyWord::Done,
        CopyWord::Reload(7, 9),
        CopyWord::Said("| boom".into()),
        CopyWord::Notify("READY=1".into()),
        CopyWord::Server(7, 8),
        CopyWord::Leaves,
    ] {
        assert_eq!(CopyWord::parse(&word.to_string()), Ok(word));
    }
    for word in [
        FrontWord::Reloaded(7),
        FrontWord::Said(7, "| boom".into()),
        FrontWord::Failed(7, 124, "late".into()),
        FrontWord::Superseded,
        FrontWord::Stop(2, true),
    ] {
        assert_eq!(FrontWord::parse(&word.to_string()), Ok(word));
    }
    assert_eq!(ServerWord::parse("FAIL"), Ok(ServerWord::Fail(String::new())));
}

#[test]
fn what_is_no_line_is_answered_and_the_next_line_counts() {
    let long = [b"READY ".as_slice(), &[b'x'; 2000], b"\nUP\n"].concat();
    assert_eq!(lines(&[&long]), [Err("line too long"), Ok("UP".into())]);
    assert_eq!(lines(&[b"\n\r\nUP\r\n"]), [Err("empty line"), Err("empty line"), Ok("UP".into())]);
    assert_eq!(lines(&[b"\xff\nUP\n"]), [Err("not UTF-8"), Ok("UP".into())]);
    assert_eq!(lines(&[b"U\0P\n"]), [Err("control character in line")]);
    assert_eq!(lines(&[b"half"]), []);
}

#[test]
fn the_limit_is_exact() {
    let fits = [vec![b'x'; LINE_MAX - 1], vec![b'\n']].concat();
    assert!(lines(&[&fits])[0].is_ok());
    let over = [vec![b'x'; LINE_MAX], vec![b'\n']].concat();
    assert_eq!(lines(&[&over]), [Err("line too long")]);
}

/// Every sequence up to length 5 over a small vocabulary of words, arguments and separators.
#[test]
fn all_short_sequences_parse_without_harm() {
    let vocabulary = ["READY", "TAKEDOWN", "RELEASED", "UP", "FAIL", "GO", " ", "\n", "\r", ":8080", "x", "0", "\0"];
    let mut sequences = vec![String::new()];
    for _ in 0..5 {
        let mut longer = Vec::with_capacity(sequences.len() * vocabulary.len());
        for s in &sequences {
            for v in vocabulary {
                longer.push(format!("{s}{v}"));
            }
        }
        for text in &longer {
            let whole = lines(&[format!("{text}\n").as_bytes()]);
            assert_eq!(whole.len(), text.matches('\n').count() + 1);
            for line in whole.into_iter().flatten() {
                let accepted = match ServerWord::parse(&line) {
                    Ok(word) => line.starts_with(word.to_string().split(' ').next().unwrap()),
                    Err(why) => !why.is_empty(),
                };
                assert!(accepted, "{line:?}");
            }
        }
        sequences = longer;
    }
}

proptest! {
    #[test]
    fn splitting_the_bytes_anywhere_changes_nothing(bytes in prop::collection::vec(any::<u8>(), 0..3000), cuts in prop::collection::vec(0usize..3000, 0..6)) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
        cuts.push(0);
        cuts.push(bytes.len());
        cuts.sort_unstable();
        let chunks: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
        prop_assert_eq!(lines(&chunks), lines(&[&bytes]));
    }

    #[test]
    fn a_written_line_is_one_line(text in ".{0,2000}") {
        let line = line_of(&SupervisorWord::Error(text));
        prop_assert!(line.len() <= LINE_MAX && line.iter().filter(|&&b| b == b'\n').count() == 1);
    }
}
