//! A publisher that sends what no library would: texts that are no UTF-8, tables in tables, long headers.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use lapin::uri::AMQPUri;

/// Payload of the longest frame that is agreed on.
pub(crate) const LONGEST_PAYLOAD: usize = 131_072 - 8;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const END: u8 = 0xCE;

/// Properties, as they are sent. They are added in the order in which AMQP has them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Properties {
    flags: u16,
    bytes: Vec<u8>,
}

/// The texts among the properties, by the bit of the flags that says that they are there.
pub(crate) const TEXTS: [(&str, u16); 10] = [
    ("content_type", 15),
    ("content_encoding", 14),
    ("correlation_id", 10),
    ("reply_to", 9),
    ("message_id", 7),
    ("type", 5),
    ("user_id", 4),
    ("app_id", 3),
    ("cluster_id", 2),
    // The broker reads this one, and takes only numbers.
    ("expiration", 8),
];

impl Properties {
    /// A property of [`TEXTS`].
    pub(crate) fn text(self, name: &str, value: &[u8]) -> Self {
        let (_, bit) = TEXTS.iter().find(|(known, _)| *known == name).expect("it is a text");
        self.with(*bit, &short(value))
    }

    /// The headers: a table's entries, as they are sent.
    pub(crate) fn headers(self, entries: &[u8]) -> Self {
        self.with(13, &long(entries))
    }

    fn with(mut self, bit: u16, bytes: &[u8]) -> Self {
        assert!(self.flags.trailing_zeros() > bit.into(), "they have an order");
        self.flags |= 1 << bit;
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        [&self.flags.to_be_bytes()[..], &self.bytes].concat()
    }
}

/// A table's entry with a long string.
pub(crate) fn text_entry(name: &[u8], text: &[u8]) -> Vec<u8> {
    [short(name), b"S".to_vec(), long(text)].concat()
}

/// A table's entry with lists in each other.
pub(crate) fn nested_entry(name: &[u8], depth: usize) -> Vec<u8> {
    let mut value = b"V".to_vec();
    for _ in 0..depth {
        value = [b"A".to_vec(), long(&value)].concat();
    }
    [short(name), value].concat()
}

fn short(text: &[u8]) -> Vec<u8> {
    let length = u8::try_from(text.len()).expect("a short string has 255 bytes at the most");
    [&[length][..], text].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

/// A connection with one channel, whose publishes are confirmed.
pub(crate) struct RawPublisher {
    stream: TcpStream,
}

impl RawPublisher {
    pub(crate) fn connect(uri: &str) -> Self {
        let uri: AMQPUri = uri.parse().expect("a good URI");
        let address = (uri.authority.host.as_str(), uri.authority.port);
        let stream = TcpStream::connect(address).expect("RabbitMQ is up");
        stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).expect("a limit");
        let mut publisher = Self { stream };
        publisher.send(b"AMQP\0\0\x09\x01");
        publisher.expect((10, 10));
        let user = &uri.authority.userinfo;
        let secret = format!("\0{}\0{}", user.username, user.password);
        let start_ok = [long(b""), short(b"PLAIN"), long(secret.as_bytes()), short(b"en_US")];
        publisher.method(0, (10, 11), &start_ok.concat());
        publisher.expect((10, 30));
        let frame_max = (LONGEST_PAYLOAD as u32 + 8).to_be_bytes();
        publisher.method(0, (10, 31), &[&[0, 1][..], &frame_max, &[0, 0]].concat());
        publisher.method(0, (10, 40), &[short(uri.vhost.as_bytes()), short(b""), vec![0]].concat());
        publisher.expect((10, 41));
        publisher.method(1, (20, 10), &short(b""));
        publisher.expect((20, 11));
        publisher.method(1, (85, 10), &[0]);
        publisher.expect((85, 11));
        publisher
    }

    /// Publishes to a queue, and waits until the broker has the message.
    pub(crate) fn publish(&mut self, queue: &str, properties: &Properties, body: &[u8]) {
        self.publish_to(b"", queue.as_bytes(), properties, body);
    }

    /// Publishes to an exchange, and waits until the broker has the message.
    pub(crate) fn publish_to(
        &mut self,
        exchange: &[u8],
        key: &[u8],
        properties: &Properties,
        body: &[u8],
    ) {
        let mandatory = vec![1];
        self.method(1, (60, 40), &[vec![0, 0], short(exchange), short(key), mandatory].concat());
        let before = [&60u16.to_be_bytes()[..], &[0, 0], &(body.len() as u64).to_be_bytes()];
        self.frame(HEADER, 1, &[&before.concat()[..], &properties.bytes()].concat());
        for part in body.chunks(LONGEST_PAYLOAD) {
            self.frame(BODY, 1, part);
        }
        self.expect((60, 80));
    }

    fn method(&mut self, channel: u16, (class, method): (u16, u16), arguments: &[u8]) {
        let name = [class.to_be_bytes(), method.to_be_bytes()].concat();
        self.frame(METHOD, channel, &[&name, arguments].concat());
    }

    fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        assert!(payload.len() <= LONGEST_PAYLOAD, "{} is longer than agreed on", payload.len());
        let frame = [&[kind][..], &channel.to_be_bytes(), &long(payload), &[END]].concat();
        self.send(&frame);
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the broker reads");
    }

    /// Waits for this method, and takes no other.
    fn expect(&mut self, (class, method): (u16, u16)) {
        let mut head = [0; 7];
        self.stream.read_exact(&mut head).expect("the broker answers");
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
        let mut payload = vec![0; size as usize + 1];
        self.stream.read_exact(&mut payload).expect("the broker answers");
        let name = [class.to_be_bytes(), method.to_be_bytes()].concat();
        let text = String::from_utf8_lossy(&payload);
        assert_eq!((head[0], &payload[..4]), (METHOD, &name[..]), "the broker says {text:?}");
    }
}
