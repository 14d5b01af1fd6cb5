//! Key rings: their text, their rotation, and that no secret shows.

use super::*;

#[test]
fn the_text_of_a_ring() {
    let one = format!("0000000a:{}", "ab".repeat(32));
    let two = format!("0000000b:{}", "cd".repeat(32));
    for (text, numbers) in [
        (one.clone(), vec![10]),
        (format!("\n  {one}\n{two}\n"), vec![10, 11]),
        (format!("{two},{one}"), vec![11, 10]),
    ] {
        let ring: KeyRing = text.parse().unwrap();
        assert_eq!(ring.keys().map(MasterKey::number).collect::<Vec<_>>(), numbers);
        assert_eq!(ring.signing_key().number(), numbers[0]);
        let shown = format!("{ring:?}");
        assert!(shown.contains("0000000a") && !shown.contains("abab"), "{shown}");
    }
    let same_number = format!("{one} 0000000a:{}", "cd".repeat(32));
    let same_secret = format!("{one} 0000000b:{}", "ab".repeat(32));
    let upper = format!("0000000A:{}", "AB".repeat(32));
    for text in
        ["", " ", "0000000a", "0000000a:", "a:ab", &one[1..], &one[..72], &same_number, &same_secret, &upper]
    {
        let error = text.parse::<KeyRing>().unwrap_err().to_string();
        assert!(!error.contains("abab"), "{error}");
    }
}

#[test]
fn names_with_a_zero_character_are_not_taken() {
    let ring = KeyRing::new(master(1));
    assert!(Sessions::new("a\0b", APP_ID, &ring).is_err());
    assert!(Sessions::new("a", "b\0c", &ring).is_err());
    let shown = format!("{:?}", Sessions::new("acme", APP_ID, &ring).unwrap());
    assert!(shown.contains("00000001") && !shown.contains("[1, 1"), "{shown}");
}

#[tokio::test]
async fn a_rotation_in_two_steps_refuses_no_session() {
    let world = World::new();
    let replicas = [sessions(), sessions()];
    let old = || KeyRing::new(master(1));
    let first_step = || old().add_verifying(master(2)).unwrap();
    let second_step = || KeyRing::new(master(2)).add_verifying(master(1)).unwrap();
    let mut bought = Vec::new();
    // Both steps reach one replica after the other.
    for (step, replica, ring) in [
        ("begin", 0, old()),
        ("the new key verifies at one", 0, first_step()),
        ("the new key verifies everywhere", 1, first_step()),
        ("the new key signs at one", 0, second_step()),
        ("the new key signs everywhere", 1, second_step()),
    ] {
        replicas[replica].replace_keys(&ring).unwrap();
        for replica in &replicas {
            bought.push(world.buy(&Exchange::new(replica.clone())).await);
        }
        for session in &bought {
            for replica in &replicas {
                let answer = world.ask(&SessionProof::new(replica.clone()), shown(session)).await;
                assert_eq!(answer.rejection(), None, "{step}");
            }
        }
    }
    replicas[0].replace_keys(&KeyRing::new(master(2))).unwrap();
    let mut admitted = Vec::new();
    for session in &bought {
        let answer = world.ask(&SessionProof::new(replicas[0].clone()), shown(session)).await;
        admitted.push(answer.rejection().is_none());
    }
    // The old key has signed all of them but those of one replica in the fourth step, and both in the last.
    assert_eq!(admitted, [false, false, false, false, false, false, true, false, true, true]);
    assert_eq!(world.fake.calls(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_watch_takes_a_new_ring_and_survives_a_fault() {
    let (world, sessions) = (World::new(), sessions());
    let (exchange, proof) = (Exchange::new(sessions.clone()), SessionProof::new(sessions.clone()));
    let file = std::sync::Arc::new(std::sync::Mutex::new(format!("00000001:{}", "01".repeat(32))));
    let source = std::sync::Arc::clone(&file);
    let load = move || {
        let text = source.lock().unwrap().clone();
        async move { text.parse::<KeyRing>() }
    };
    assert!(sessions.watch_keys(Duration::ZERO, load.clone()).is_err());
    let watch = sessions.watch_keys(Duration::from_secs(30), load).unwrap();
    let old = world.buy(&exchange).await;
    for (text, admits_old) in [
        ("rubbish".to_owned(), true),
        (format!("00000002:{} 00000001:{}", "02".repeat(32), "01".repeat(32)), true),
        (format!("00000002:{}", "02".repeat(32)), false),
    ] {
        *file.lock().unwrap() = text;
        tokio::time::sleep(Duration::from_secs(31)).await;
        assert_eq!(world.ask(&proof, shown(&old)).await.rejection().is_none(), admits_old);
    }
    let new = world.buy(&exchange).await;
    drop(watch);
    *file.lock().unwrap() = format!("00000003:{}", "03".repeat(32));
    tokio::time::sleep(Duration::from_secs(90)).await;
    assert_eq!(world.ask(&proof, shown(&new)).await.rejection(), None, "nobody watches");
    assert_eq!(world.fake.calls(), 2);
}
