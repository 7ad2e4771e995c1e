use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, parse_frame};
use amq_protocol::protocol::AMQPClass;
use amq_protocol::protocol::basic::AMQPMethod;
use amq_protocol::types::{AMQPValue, FieldTable};
use image_builder_actors::testing::draw::Draw;

use super::*;

const LONGEST: u32 = 131_072;

fn frames() -> Frames {
    let mut frames = Frames::new(&["kept"]);
    let offer = [&[0, 10, 0, 30, 7, 255][..], &LONGEST.to_be_bytes(), &[0, 60]].concat();
    let mut out = Vec::new();
    frames.take_in(&frame(METHOD, 0, &offer), &mut out);
    assert_eq!(out, frame(METHOD, 0, &offer));
    frames
}

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let size = (payload.len() as u32).to_be_bytes();
    [&[kind][..], &channel.to_be_bytes(), &size, payload, &[FRAME_END]].concat()
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[text.len() as u8][..], text].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

/// A content header with these properties.
fn header(flags: u16, properties: &[u8]) -> Vec<u8> {
    let before = [&[0, 60, 0, 0][..], &5u64.to_be_bytes(), &flags.to_be_bytes()].concat();
    frame(CONTENT_HEADER, 1, &[&before, properties].concat())
}

fn with_headers(entries: &[u8]) -> Vec<u8> {
    header(1 << 13, &long(entries))
}

/// An entry with lists in each other.
fn nested(name: &[u8], depth: usize) -> Vec<u8> {
    let mut value = b"V".to_vec();
    for _ in 0..depth {
        value = [b"A".to_vec(), long(&value)].concat();
    }
    [short(name), value].concat()
}

fn deliver(exchange: &[u8], key: &[u8]) -> Vec<u8> {
    let fields = [&[0, 60, 0, 60][..], &short(b"ctag"), &[0; 9], &short(exchange), &short(key)];
    frame(METHOD, 1, &fields.concat())
}

fn through(frames: &mut Frames, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frames.take_in(bytes, &mut out);
    out
}

fn read(bytes: &[u8]) -> AMQPFrame {
    let (rest, frame) = parse_frame(bytes).expect("the library can read it");
    assert!(rest.is_empty());
    frame
}

fn read_header(bytes: &[u8]) -> AMQPContentHeader {
    match read(bytes) {
        AMQPFrame::Header(1, header) => header,
        other => panic!("{other:?}"),
    }
}

fn headers_of(bytes: &[u8]) -> FieldTable {
    read_header(bytes).properties.headers().clone().unwrap_or_default()
}

/// Whether the message is marked, and has nothing else.
fn is_marked(bytes: &[u8]) -> bool {
    let header = read_header(bytes);
    assert_eq!((header.class_id, header.body_size), (60, 5));
    let mut only = FieldTable::default();
    only.insert(UNREADABLE.into(), AMQPValue::Void);
    header.properties == lapin::BasicProperties::default().with_headers(only)
}

/// Some of everything.
fn honest() -> Vec<u8> {
    let table = [
        nested(b"x-death", 3),
        [short("ключ".as_bytes()), b"S".to_vec(), long(&[0xff, 0xfe])].concat(),
        [short(b"table"), b"F".to_vec(), long(&[short(b"n"), b"l".to_vec(), vec![0; 8]].concat())]
            .concat(),
        [short(b"t"), b"t\x01".to_vec()].concat(),
        [short(b"d"), b"D".to_vec(), vec![1; 5]].concat(),
    ]
    .concat();
    let texts = short("ü".as_bytes());
    let properties =
        [&texts[..], &texts, &long(&table), &[2, 9], &texts, &texts, &texts, &texts, &[0; 8]]
            .concat();
    let properties = [&properties[..], &texts, &texts, &texts, &texts].concat();
    [
        header(0, &[]),
        header(u16::MAX << 2, &properties),
        deliver("ex-ü".as_bytes(), b"key"),
        frame(BODY, 1, &[0xff; 300]),
        frame(HEARTBEAT, 0, &[]),
        frame(METHOD, 1, &[0, 60, 0, 80, 0, 0, 0, 0, 0, 0, 0, 1, 0]),
    ]
    .concat()
}

#[test]
fn what_the_library_can_read_is_let_through_byte_for_byte() {
    assert_eq!(through(&mut frames(), &honest()), honest());
}

#[test]
fn texts_that_are_no_utf8_mark_their_message() {
    for bit in [15, 14, 10, 9, 8, 7, 5, 4, 3, 2] {
        let bad = header(1 << bit, &short(b"caf\xe9"));
        assert!(is_marked(&through(&mut frames(), &bad)), "{bit}");
    }
    let in_table = [short(b"t"), b"F".to_vec(), long(&[short(b"\xff"), b"V".to_vec()].concat())];
    let unknown = [short(b"k"), b"?".to_vec()].concat();
    for entries in [[short(b"\xe9"), b"V".to_vec()].concat(), in_table.concat(), unknown] {
        assert!(is_marked(&through(&mut frames(), &with_headers(&entries))), "{entries:?}");
    }
}

#[test]
fn properties_of_a_wrong_length_mark_their_message() {
    let cut_off = header(1 << 3, b"\x09short");
    let too_much = header(1 << 3, b"\x01ab");
    let beyond = header(1 << 13, &[0, 0, 0, 9, 1, b'k']);
    for bad in [cut_off, too_much, beyond] {
        assert!(is_marked(&through(&mut frames(), &bad)));
    }
}

#[test]
fn a_delivery_with_a_route_that_is_no_utf8_marks_its_message_and_no_other() {
    let mut frames = frames();
    for (exchange, key, readable) in
        [(&b"e\xff"[..], &b"k"[..], ("e?", "k")), (b"e", b"\xe9\xe8k", ("e", "??k"))]
    {
        let AMQPFrame::Method(1, AMQPClass::Basic(AMQPMethod::Deliver(got))) =
            read(&through(&mut frames, &deliver(exchange, key)))
        else {
            panic!("it is a delivery")
        };
        assert_eq!((got.exchange.as_str(), got.routing_key.as_str()), readable);
        let other = frame(CONTENT_HEADER, 2, &header(0, &[])[HEAD..][..14]);
        assert_eq!(through(&mut frames, &other), other);
        assert!(is_marked(&through(&mut frames, &header(1 << 3, &short(b"app")))));
        assert!(!is_marked(&through(&mut frames, &header(1 << 3, &short(b"app")))));
    }
}

#[test]
fn the_text_of_a_refusal_may_end_within_a_character() {
    let refusal =
        frame(METHOD, 1, &[&[0, 20, 0, 40, 1, 0x94][..], b"\x04ab\xc3.", &[0; 4]].concat());
    let readable = read(&through(&mut frames(), &refusal));
    assert!(format!("{readable:?}").contains("ab?."), "{readable:?}");
}

#[test]
fn headers_that_are_nested_too_deeply_are_left_out_and_nothing_else() {
    let deep = nested(b"deep", 20_000);
    let entries = [nested(b"flat", 3), deep, nested(b"kept", 1)].concat();
    let sent = header(1 << 13 | 1 << 7, &[long(&entries), short(b"id")].concat());
    let header = read_header(&through(&mut frames(), &sent));
    let headers = header.properties.headers().clone().expect("there are some");
    let names: Vec<_> = headers.inner().keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["flat", "kept"]);
    assert_eq!(header.properties.message_id().as_ref().map(|id| id.as_str()), Some("id"));
}

#[test]
fn what_is_nested_as_deeply_as_can_be_read_is_read_on_a_small_stack() {
    let sent = with_headers(&nested(b"deep", 32));
    assert_eq!(through(&mut frames(), &sent), sent);
    let reading = std::thread::Builder::new().stack_size(1 << 20).spawn(move || headers_of(&sent));
    let headers = reading.expect("a thread").join().expect("there is room");
    assert_eq!(headers.inner().len(), 1);
    let deeper = with_headers(&nested(b"deep", 33));
    assert_eq!(headers_of(&through(&mut frames(), &deeper)), FieldTable::default());
}

#[test]
fn of_properties_that_are_longer_than_a_frame_only_the_known_headers_are_kept() {
    let text =
        |name: &[u8], length| [short(name), b"S".to_vec(), long(&vec![b'x'; length])].concat();
    let entries = [text(b"foreign", 131_000), text(b"kept", 100)].concat();
    let out = through(&mut frames(), &with_headers(&entries));
    let headers = headers_of(&out);
    let names: Vec<_> = headers.inner().keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["kept"]);
    let too_long = with_headers(&text(b"kept", 131_050));
    assert!(is_marked(&through(&mut frames(), &too_long)));
}

#[test]
fn what_is_no_amqp_is_for_the_library_to_refuse() {
    let bytes = [&b"AMQP\0\0\x09\x01"[..], &header(1 << 3, &short(b"\xff"))].concat();
    assert_eq!(through(&mut frames(), &bytes), bytes);
}

#[test]
fn how_the_bytes_are_cut_makes_no_difference() {
    let bad = header(1 << 3, &short(b"\xff"));
    let deep = with_headers(&nested(b"deep", 50));
    let bytes = [honest(), deliver(b"\xff", b""), bad, deep, honest()].concat();
    let whole = through(&mut frames(), &bytes);
    let mut draw = Draw::new(7);
    for _ in 0..500 {
        let (mut frames, mut out, mut rest) = (frames(), Vec::new(), &bytes[..]);
        while !rest.is_empty() {
            let (part, others) = rest.split_at((1 + draw.below(40)).min(rest.len()));
            frames.take_in(part, &mut out);
            rest = others;
        }
        assert_eq!(out, whole);
    }
}

/// What is let through as it is, and what is rewritten, are both what the library can read; and it is
/// rewritten only where the library could not.
#[test]
fn whatever_is_in_a_content_header_the_library_can_read_what_is_made_of_it() {
    let seed = honest();
    let (_, first) =
        parse_frame(&seed[..]).map(|(rest, _)| (rest, seed.len() - rest.len())).expect("");
    let length = u32::from_be_bytes(seed[first + 3..first + 7].try_into().expect("four")) as usize;
    let good = &seed[first..first + length + AROUND];
    let (mut draw, mut rewritten) = (Draw::new(11), 0);
    for _ in 0..50_000 {
        let mut bytes = good.to_vec();
        // The class, the weight and the body's length are the broker's own.
        let properties = HEAD + BEFORE_PROPERTIES..bytes.len() - 1;
        for _ in 0..=draw.below(3) {
            let at = properties.start + draw.below(properties.len());
            bytes[at] = draw.below(256) as u8;
        }
        let out = through(&mut frames(), &bytes);
        read_header(&out);
        if out == bytes {
            continue;
        }
        rewritten += 1;
        assert!(parse_frame(&bytes[..]).is_err(), "{bytes:?}");
    }
    assert!((5_000..45_000).contains(&rewritten), "{rewritten}");
}
