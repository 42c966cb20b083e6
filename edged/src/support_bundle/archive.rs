//! A zip file in the making: filled piece by piece by a blocking task, on disk, within limits.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufWriter, Read as _, Seek as _, SeekFrom, Write as _},
    path::Path,
};

use futures_util::{Stream, stream};
use hyper::body::Bytes;
use jiff::Zoned;
use tokio::{sync::mpsc, task::JoinHandle};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// Pieces that wait for the disk.
const QUEUE: usize = 4;
/// Bytes of one piece of the answer.
const PIECE: u64 = 64 * 1024;
/// The entry that names what is not there.
const LEFT_OUT: &str = "left_out.txt";

/// How much goes in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes of one entry before compression.
    pub(super) entry: u64,
    /// Bytes of the file.
    pub(super) file: u64,
}

/// Logs of a device that talks much, and a file that a mobile connection can carry.
pub(super) const LIMITS: Limits = Limits { entry: 128 * 1024 * 1024, file: 256 * 1024 * 1024 };

enum Piece {
    /// Begins an entry.
    Entry(String),
    /// Goes into the entry that was begun.
    Bytes(Bytes),
}

/// A zip file in the making.
pub(super) struct Archive {
    pieces: mpsc::Sender<Piece>,
    writer: JoinHandle<io::Result<File>>,
    left_out: Vec<String>,
}

impl Archive {
    /// An empty one in a file without a name.
    pub(super) fn create(folder: &Path, limits: Limits) -> io::Result<Self> {
        let file = tempfile::tempfile_in(folder)?;
        let (pieces, received) = mpsc::channel(QUEUE);
        let writer = tokio::task::spawn_blocking(move || write(file, received, limits));
        Ok(Self { pieces, writer, left_out: Vec::new() })
    }

    /// Begins an entry. A failure of the disk shows at the end.
    pub(super) async fn entry(&mut self, name: &str) {
        self.send(Piece::Entry(name.to_owned())).await;
    }

    /// Adds to the entry that was begun.
    pub(super) async fn bytes(&mut self, bytes: Bytes) {
        self.send(Piece::Bytes(bytes)).await;
    }

    /// Notes what the bundle does not have, and why.
    pub(super) fn leave_out(&mut self, what: &str, why: &str) {
        self.left_out.push(format!("{what}: {why}\n"));
    }

    async fn send(&mut self, piece: Piece) {
        // The writer has failed, which its result tells.
        let _ = self.pieces.send(piece).await;
    }

    /// The whole file.
    pub(super) async fn finish(mut self) -> io::Result<Finished> {
        if !self.left_out.is_empty() {
            let text = std::mem::take(&mut self.left_out).concat();
            self.entry(LEFT_OUT).await;
            self.bytes(Bytes::from(text)).await;
        }
        let Self { pieces, writer, .. } = self;
        drop(pieces);
        let file = writer.await.map_err(io::Error::other)??;
        let length = file.metadata()?.len();
        Ok(Finished { file, length })
    }
}

fn write(file: File, mut pieces: mpsc::Receiver<Piece>, limits: Limits) -> io::Result<File> {
    let mut zip = ZipWriter::new(BufWriter::new(file));
    let mut names = HashSet::new();
    let mut entry = None;
    let mut written = 0;
    while let Some(piece) = pieces.blocking_recv() {
        match piece {
            Piece::Entry(name) => {
                let name = unused(&name, &mut names);
                zip.start_file(&name, options()).map_err(io::Error::other)?;
                (entry, written) = (Some(name), 0);
            }
            Piece::Bytes(bytes) if entry.is_some() => {
                let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                let room = limits.entry - written;
                // What the compressor still holds is not counted: it is little.
                let is_full = zip
                    .get_ref()
                    .is_some_and(|file| file.get_ref().metadata().is_ok_and(|data| data.len() >= limits.file));
                if is_full || length > room {
                    let rest = if is_full { 0 } else { usize::try_from(room).unwrap_or(bytes.len()) };
                    zip.write_all(&bytes[..rest])?;
                    zip.write_all(b"\n[cut: the bundle has a limit of size]\n")?;
                    entry = None;
                } else {
                    zip.write_all(&bytes)?;
                    written += length;
                }
            }
            // The rest of an entry that was cut.
            Piece::Bytes(_) => {}
        }
    }
    let file = zip.finish().map_err(io::Error::other)?;
    file.into_inner().map_err(io::IntoInnerError::into_error)
}

/// The name, with a number where an entry has it already: names of networks that no file should have, or a module called as another's
/// complaints, must not cost the bundle.
fn unused(name: &str, names: &mut HashSet<String>) -> String {
    let (stem, extension) =
        name.rsplit_once('.').map_or((name, String::new()), |(stem, extension)| (stem, format!(".{extension}")));
    let numbered = (2..).map(|number| format!("{stem}-{number}{extension}"));
    let mut candidates = std::iter::once(name.to_owned()).chain(numbered);
    // So many names cannot be taken.
    candidates.find(|candidate| names.insert(candidate.clone())).unwrap_or_default()
}

fn options() -> SimpleFileOptions {
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated).large_file(true);
    let now = Zoned::now();
    let number = |number: i8| u8::try_from(number).unwrap_or(0);
    let time = zip::DateTime::from_date_and_time(
        u16::try_from(now.year()).unwrap_or(0),
        number(now.month()),
        number(now.day()),
        number(now.hour()),
        number(now.minute()),
        number(now.second()),
    );
    // Zip files know no time before 1980, which is where a device without a clock begins.
    time.map_or(options, |time| options.last_modified_time(time))
}

/// A finished zip file.
pub(super) struct Finished {
    file: File,
    /// Its bytes.
    pub(super) length: u64,
}

impl Finished {
    /// The file from its beginning, piece by piece.
    pub(super) fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        stream::try_unfold((self.file, 0), |(file, position)| async move {
            let read = tokio::task::spawn_blocking(move || read(file, position));
            let (file, piece) = read.await.map_err(io::Error::other)??;
            let next = position + u64::try_from(piece.len()).unwrap_or(0);
            Ok((!piece.is_empty()).then(|| (Bytes::from(piece), (file, next))))
        })
    }
}

fn read(mut file: File, position: u64) -> io::Result<(File, Vec<u8>)> {
    file.seek(SeekFrom::Start(position))?;
    let mut piece = Vec::with_capacity(usize::try_from(PIECE).unwrap_or(0));
    (&file).take(PIECE).read_to_end(&mut piece)?;
    Ok((file, piece))
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use futures_util::TryStreamExt as _;

    use super::*;

    /// All entries of a finished archive.
    pub(in crate::support_bundle) async fn entries(archive: Archive) -> BTreeMap<String, String> {
        let finished = archive.finish().await.unwrap();
        let length = finished.length;
        let pieces: Vec<Bytes> = finished.into_stream().try_collect().await.unwrap();
        let bytes = pieces.concat();
        assert_eq!(u64::try_from(bytes.len()).unwrap(), length);
        let mut zip = zip::ZipArchive::new(io::Cursor::new(bytes)).unwrap();
        (0..zip.len())
            .map(|index| {
                let mut entry = zip.by_index(index).unwrap();
                let mut text = String::new();
                entry.read_to_string(&mut text).unwrap();
                (entry.name().unwrap().into_owned(), text)
            })
            .collect()
    }

    #[tokio::test]
    async fn entries_are_filled_piece_by_piece() {
        let folder = tempfile::tempdir().unwrap();
        let mut archive = Archive::create(folder.path(), LIMITS).unwrap();
        archive.entry("a.txt").await;
        archive.bytes(Bytes::from_static(b"one ")).await;
        archive.bytes(Bytes::from_static(b"two")).await;
        archive.entry("logs/empty.txt").await;
        archive.leave_out("c", "there was no time");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the file has no name");
        let entries = entries(archive).await;
        assert_eq!(entries["a.txt"], "one two");
        assert_eq!(entries["logs/empty.txt"], "");
        assert_eq!(entries["left_out.txt"], "c: there was no time\n");
    }

    #[tokio::test]
    async fn entries_of_one_name_are_numbered() {
        let folder = tempfile::tempdir().unwrap();
        let mut archive = Archive::create(folder.path(), LIMITS).unwrap();
        for (name, text) in [
            ("n/a_b.json", "1"),
            ("n/a_b.json", "2"),
            ("n/a_b-2.json", "3"),
            ("n/a_b.json", "4"),
            ("x", "5"),
            ("x", "6"),
        ] {
            archive.entry(name).await;
            archive.bytes(Bytes::from_static(text.as_bytes())).await;
        }
        let entries = entries(archive).await;
        let names = ["n/a_b.json", "n/a_b-2.json", "n/a_b-2-2.json", "n/a_b-3.json", "x", "x-2"];
        assert_eq!(names.map(|name| entries[name].as_str()), ["1", "2", "3", "4", "5", "6"]);
    }

    #[tokio::test]
    async fn an_entry_that_is_too_long_is_cut_and_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let mut archive = Archive::create(folder.path(), Limits { entry: 6, file: 1024 * 1024 }).unwrap();
        archive.entry("a").await;
        archive.bytes(Bytes::from_static(b"1234")).await;
        archive.bytes(Bytes::from_static(b"5678")).await;
        archive.bytes(Bytes::from_static(b"9")).await;
        archive.entry("b").await;
        archive.bytes(Bytes::from_static(b"123456")).await;
        let entries = entries(archive).await;
        assert_eq!(entries["a"], "123456\n[cut: the bundle has a limit of size]\n");
        assert_eq!(entries["b"], "123456");
    }

    #[tokio::test]
    async fn a_full_bundle_takes_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let mut archive = Archive::create(folder.path(), Limits { entry: 8 * 1024 * 1024, file: 64 * 1024 }).unwrap();
        archive.entry("noise").await;
        let mut noise = fastrand::Rng::with_seed(7);
        for _ in 0..64 {
            let piece: Vec<u8> = std::iter::repeat_with(|| noise.u8(b' '..b'~')).take(16 * 1024).collect();
            archive.bytes(Bytes::from(piece)).await;
        }
        archive.entry("after").await;
        archive.bytes(Bytes::from_static(b"text")).await;
        let finished = archive.finish().await.unwrap();
        assert!(finished.length < 256 * 1024, "{}", finished.length);
    }
}
