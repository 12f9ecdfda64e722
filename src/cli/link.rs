//! The viewer's link, and the same as a QR code for a telephone's camera.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use edgecam::config::Config;
use edgecam::core::signal::CameraId;
use edgecam::net;
use edgecam::signaling::access::Rule;
use edgecam::signaling::token::{self, Grant};
use qrcode::{Color, EcLevel, QrCode};

/// The page's addresses as viewers reach it, the likeliest first; a grant comes with a token in the fragment, which no server
/// and no log sees.
pub(super) fn links(config: &Config, camera: Option<&CameraId>, token: Option<&str>) -> Vec<String> {
    let addresses = match config.listen.ip() {
        ip if ip.is_unspecified() => net::own_addresses(),
        ip => vec![ip],
    };
    let path = camera.map(CameraId::as_str).unwrap_or_default();
    let fragment = token.map(|token| format!("#token={token}")).unwrap_or_default();
    let link = |ip: IpAddr| format!("http://{}/{path}{fragment}", SocketAddr::new(ip, config.listen.port()));
    addresses.into_iter().map(link).collect()
}

/// A token where this device asks for one.
pub(super) fn token(config: &Config, grant: &Grant, ttl: Option<Duration>, now: SystemTime) -> Option<String> {
    match &config.access.rule {
        Rule::Open => None,
        Rule::Key(key) => Some(token::mint(key, &config.device, grant, ttl, now)),
    }
}

/// Prints the first link with its code, then the others.
///
/// # Errors
/// A closed stdout.
pub(super) fn print(links: &[String]) -> io::Result<()> {
    let mut stdout = io::stdout();
    let Some((first, others)) = links.split_first() else {
        return writeln!(
            stdout,
            "This machine has no address on a network, so there is no link for viewers elsewhere."
        );
    };
    writeln!(stdout, "\n  {first}\n")?;
    if let Some(code) = code(first) {
        write!(stdout, "{}", drawn(&code, stdout.is_terminal()))?;
    }
    for link in others {
        writeln!(stdout, "\nor, where that address cannot be reached:\n  {link}")?;
    }
    Ok(())
}

/// `None`: the link is too long for any code. It stands on a screen, so the least repair of errors will do.
fn code(link: &str) -> Option<QrCode> {
    QrCode::with_error_correction_level(link, EcLevel::L).ok()
}

/// Light modules around a code, without which cameras do not find it (ISO/IEC 18004, section 6.3.8).
const QUIET_ZONE: usize = 4;

/// Two modules in each character, one above the other. On a terminal black on white whatever its own colours are; else as for
/// dark letters on paper.
fn drawn(code: &QrCode, is_terminal: bool) -> String {
    let width = code.width() + 2 * QUIET_ZONE;
    let modules = code.to_colors();
    let is_dark = |x: usize, y: usize| {
        let inside = |at: usize| at.checked_sub(QUIET_ZONE).filter(|at| *at < code.width());
        inside(x).zip(inside(y)).is_some_and(|(x, y)| modules[y * code.width() + x] == Color::Dark)
    };
    let mut text = String::new();
    for y in (0..width).step_by(2) {
        let row: String = (0..width)
            .map(|x| match (is_dark(x, y), is_dark(x, y + 1)) {
                (true, true) => '█',
                (true, false) => '▀',
                (false, true) => '▄',
                (false, false) => ' ',
            })
            .collect();
        let _ = if is_terminal { writeln!(text, "\x1b[30;107m{row}\x1b[0m") } else { writeln!(text, "{row}") };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_is_read_as_the_link() {
        let link = format!("http://192.168.1.7:8080/#token={}", "aZ09-_.".repeat(35));
        for is_terminal in [false, true] {
            let text = drawn(&code(&link).unwrap(), is_terminal);
            assert_eq!(read(&text), link);
        }
    }

    #[test]
    fn a_code_is_black_on_white_and_surrounded_by_white() {
        let text = drawn(&code("http://192.168.1.7:8080/").unwrap(), true);
        assert!(
            text.lines().all(|line| line.starts_with("\x1b[30;107m    ") && line.ends_with("    \x1b[0m")),
            "{text}"
        );
        let plain = drawn(&code("http://192.168.1.7:8080/").unwrap(), false);
        assert!(!plain.contains('\x1b'), "{plain}");
        assert!(plain.lines().take(2).all(|line| line.trim().is_empty()), "{plain}");
    }

    /// Reads a drawn code back from its characters.
    fn read(text: &str) -> String {
        let plain = text.replace("\x1b[30;107m", "").replace("\x1b[0m", "");
        let rows: Vec<Vec<char>> = plain.lines().map(|line| line.chars().collect()).collect();
        let is_dark = |x: usize, y: usize| match rows[y / 2][x] {
            '█' => true,
            '▀' => y.is_multiple_of(2),
            '▄' => !y.is_multiple_of(2),
            _ => false,
        };
        let size = rows[0].len() - 2 * QUIET_ZONE;
        let grid = rqrr::SimpleGrid::from_func(size, |x, y| is_dark(x + QUIET_ZONE, y + QUIET_ZONE));
        rqrr::Grid::new(grid).decode().unwrap().1
    }
}
