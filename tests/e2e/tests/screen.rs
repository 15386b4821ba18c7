//! Screen and keyboard: the picture shows what the guest has painted, and keys arrive.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall end")]

use api::client::Socket;
use api::endpoint as ep;
use api::endpoint::Endpoint;
use api::endpoint::Nothing;
use bytes::Bytes;
use e2e::GUEST;
use e2e::Host;
use e2e::Serial;
use e2e::Vm;
use e2e::eventually;
use e2e::tiny;
use tokio::time::timeout;

/// The part of the screen, in percent, that must have the colour: there may be a cursor.
const PART: usize = 95;

/// Red, green and blue of each pixel.
type Picture = Vec<[u8; 3]>;

/// Paints the guest's whole text screen, by the number of a colour.
async fn paint(shell: &mut Serial, colour: u8) {
    let line = format!("printf '\\033[?25l\\033[4{colour}m\\033[2J\\033[H' >/dev/tty1");
    shell.run(&line).await;
}

fn mostly(picture: &Picture, is: impl Fn(&[u8; 3]) -> bool) -> bool {
    let hits = picture.iter().filter(|pixel| is(pixel)).count();
    !picture.is_empty() && hits * 100 / picture.len() >= PART
}

fn is_red([r, g, b]: &[u8; 3]) -> bool {
    *r > 120 && *g < 40 && *b < 40
}

fn is_green([r, g, b]: &[u8; 3]) -> bool {
    *g > 120 && *r < 40 && *b < 40
}

fn is_blue([r, g, b]: &[u8; 3]) -> bool {
    *b > 120 && *r < 40 && *g < 40
}

async fn screenshot(vm: &Vm<'_>) -> Picture {
    let info = &<ep::VmScreenshot as Endpoint>::INFO;
    let nothing = Nothing {};
    let file = vm.host().client().call_raw(info, &[vm.name()], &nothing, &nothing).await.unwrap();
    let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert!(info.width >= 320 && info.height >= 200, "{info:?}");
    let step = match info.color_type {
        png::ColorType::Rgb => 3,
        png::ColorType::Rgba => 4,
        other => panic!("{other:?}"),
    };
    pixels[..info.buffer_size()].chunks(step).map(|it| [it[0], it[1], it[2]]).collect()
}

/// A viewer: as much of RFC 6143 as shows a screen and presses keys.
struct Viewer {
    socket: Socket,
    heard: Vec<u8>,
    size: (u16, u16),
}

impl Viewer {
    async fn connect(vm: &Vm<'_>) -> Self {
        let socket = vm.host().client().socket::<ep::VmVnc>(&[vm.name()]).await.unwrap();
        let mut viewer = Self { socket, heard: Vec::new(), size: (0, 0) };
        let version = viewer.take(12).await;
        assert!(version.starts_with(b"RFB 003."), "{version:?}");
        viewer.say(b"RFB 003.008\n").await;
        let count = viewer.take(1).await[0];
        let kinds = viewer.take(count.into()).await;
        // No password: the API has asked who it is.
        assert!(kinds.contains(&1), "{kinds:?}");
        viewer.say(&[1]).await;
        assert_eq!(viewer.take(4).await, [0; 4]);
        viewer.say(&[1]).await;
        let server = viewer.take(24).await;
        let number = |at: usize| u16::from_be_bytes([server[at], server[at + 1]]);
        viewer.size = (number(0), number(2));
        let name = u32::from_be_bytes(server[20..24].try_into().unwrap());
        viewer.take(name.try_into().unwrap()).await;
        // 32 bits for each pixel, little endian: blue, green, red, nothing; and no compression.
        let format = [32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0];
        viewer.say(&[&[0, 0, 0, 0], &format[..]].concat()).await;
        viewer.say(&[2, 0, 0, 1, 0, 0, 0, 0]).await;
        viewer
    }

    async fn say(&mut self, words: &[u8]) {
        self.socket.send(Bytes::copy_from_slice(words)).await.unwrap();
    }

    async fn take(&mut self, count: usize) -> Vec<u8> {
        while self.heard.len() < count {
            let more = timeout(GUEST, self.socket.receive()).await.unwrap().unwrap().unwrap();
            self.heard.extend_from_slice(&more);
        }
        self.heard.drain(..count).collect()
    }

    /// Asks for the whole screen and waits for it.
    async fn picture(&mut self) -> Picture {
        let (width, height) = (self.size.0.to_be_bytes(), self.size.1.to_be_bytes());
        let ask = [&[3, 0, 0, 0, 0, 0][..], &width, &height].concat();
        self.say(&ask).await;
        // Bells and the like may come before.
        while self.take(1).await[0] != 0 {}
        let head = self.take(3).await;
        let mut picture = Vec::new();
        for _ in 0..u16::from_be_bytes([head[1], head[2]]) {
            let part = self.take(12).await;
            assert_eq!(part[8..12], [0; 4], "not the encoding that was asked for");
            let side = |at: usize| usize::from(u16::from_be_bytes([part[at], part[at + 1]]));
            let data = self.take(side(4) * side(6) * 4).await;
            picture.extend(data.chunks(4).map(|it| [it[2], it[1], it[0]]));
        }
        picture
    }

    /// Types; capital letters and what needs Shift are left out.
    async fn type_line(&mut self, line: &str) {
        const RETURN: u32 = 0xff0d;
        for key in line.chars().map(u32::from).chain([RETURN]) {
            for down in [1, 0] {
                let event = [&[4, down, 0, 0][..], &key.to_be_bytes()].concat();
                self.say(&event).await;
            }
        }
    }
}

#[tokio::test]
async fn the_screen_shows_what_the_guest_paints_and_the_keyboard_reaches_it() {
    let host = Host::start().await;
    host.import_tiny().await;
    let vm = host.boot(&tiny("screen")).await;
    let mut shell = vm.shell().await;
    paint(&mut shell, 1).await;
    eventually("a red screen", GUEST, async || {
        mostly(&screenshot(&vm).await, is_red).then_some(())
    })
    .await;
    // The same by the command, into a file.
    let file = host.file("screen.png");
    let path = file.display().to_string();
    host.cli(&["vm", "screenshot", "screen", "-o", &path]).await.ok();
    assert!(std::fs::read(&file).unwrap().starts_with(b"\x89PNG\r\n\x1a\n"));

    let mut viewer = Viewer::connect(&vm).await;
    paint(&mut shell, 2).await;
    eventually("a green screen", GUEST, async || {
        mostly(&viewer.picture().await, is_green).then_some(())
    })
    .await;
    // A second viewer sees the same, and the first stays.
    let mut second = Viewer::connect(&vm).await;
    paint(&mut shell, 4).await;
    eventually("a blue screen for both", GUEST, async || {
        let both = [viewer.picture().await, second.picture().await];
        both.iter().all(|picture| mostly(picture, is_blue)).then_some(())
    })
    .await;
    second.type_line("touch /run/typed").await;
    eventually("what was typed is done", GUEST, async || {
        (shell.try_run("ls /run/typed").await.0 == 0).then_some(())
    })
    .await;
}
