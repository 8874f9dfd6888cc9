//! The Redis user of a consumer in another system, as `docs/EVENTS.md` describes it.

use deadpool_redis::redis::{Client, Value, cmd};
use visionscope_billing::stream::EventStream;

use crate::events::{events, partition};
use crate::redis_server::RedisServer;

const PAGE: &str = include_str!("../../docs/EVENTS.md");

/// Creates the user with the page's own commands.
fn create_user(redis: &RedisServer) {
    let lines: Vec<_> = PAGE.lines().filter(|line| line.starts_with("ACL SETUSER reader ")).collect();
    assert!(lines.len() == 2 && lines[0].contains(">PASSWORD"), "{lines:?}");
    for line in lines {
        let line = line.replace("GROUP", "mail");
        redis.execute::<()>(&line.split(' ').collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_consumer_may_read_and_acknowledge_and_nothing_else() {
    let redis = RedisServer::start();
    let (stream, p) = (redis.stream(), partition(0));
    stream.append(p, 1, 1, None, &events(p, 1..=5)).await.unwrap();
    redis.execute::<()>(&["SET", "other", "x"]);
    create_user(&redis);
    let client = Client::open(format!("redis://reader:PASSWORD@127.0.0.1:{}", redis.port)).unwrap();
    let mut connection = client.get_connection().unwrap();
    let mut run = |line: &str| {
        let mut words = line.split(' ');
        cmd(words.next().unwrap()).arg(words.collect::<Vec<_>>()).query::<Value>(&mut connection)
    };
    for allowed in [
        "PING",
        "GET vs:{p00}:generation",
        "XGROUP CREATE vs:{p00}:g1 mail 0",
        "XREADGROUP GROUP mail one COUNT 3 STREAMS vs:{p00}:g1 >",
        "XACK vs:{p00}:g1 mail 1-0",
        "XPENDING vs:{p00}:g1 mail",
        "XCLAIM vs:{p00}:g1 mail two 0 2-0",
        "XAUTOCLAIM vs:{p00}:g1 mail two 0 0",
        "XRANGE vs:{p00}:g1 - + COUNT 2",
        "XINFO GROUPS vs:{p00}:g1",
        "XINFO STREAM vs:{p00}:g1",
        "XADD vs:{p00}:dlq:mail MAXLEN ~ 1000 * a b",
    ] {
        run(allowed).unwrap_or_else(|error| panic!("{allowed}: {error}"));
    }
    for refused in [
        "XADD vs:{p00}:g1 * a b",
        "XADD vs:{p00}:dlq:other * a b",
        "XADD vs:{p00}:generation * a b",
        "XTRIM vs:{p00}:g1 MAXLEN 0",
        "XDEL vs:{p00}:g1 1-0",
        "DEL vs:{p00}:g1",
        "SET vs:{p00}:generation 9",
        "XGROUP DESTROY vs:{p00}:g1 mail",
        "XGROUP CREATE vs:{p00}:generation mail 0",
        "XSETID vs:{p00}:g1 9-0",
        "EXPIRE vs:{p00}:g1 1",
        "GET other",
        "EVAL return 0",
        "FLUSHALL",
        "CONFIG GET *",
        "ACL WHOAMI",
    ] {
        let error = run(refused).expect_err(refused);
        assert_eq!(error.code(), Some("NOPERM"), "{refused}: {error}");
    }
}
