//! Lines for whoever looks at the screen, and for the kernel's log, which outlives a panic in pstore.

use std::fmt;

/// Longest line; the rest is cut.
const LINE_BYTES_MAX: usize = 512;

/// Writes `quelea: …` to stderr, which is the console, and to the kernel's log at a level that does not come
/// back to the console. One write each, so that lines of several processes stay whole; errors are ignored,
/// because a machine without a console must boot as well.
pub(crate) fn write_line(line: fmt::Arguments<'_>) {
    let mut text = format!("quelea: {line}");
    if text.len() > LINE_BYTES_MAX {
        let cut = (0..=LINE_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(cut);
    }
    // Bytes of strangers (host names, options) end up here; they must not drive a terminal.
    let mut text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let _ = std::fs::OpenOptions::new().write(true).open("/dev/kmsg").and_then(|mut kmsg| {
        std::io::Write::write_all(&mut kmsg, format!("<7>{text}\n").as_bytes())
    });
    text.push('\n');
    let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
}

macro_rules! say {
    ($($arg:tt)*) => { $crate::machine::console::write_line(format_args!($($arg)*)) };
}
pub(crate) use say;
