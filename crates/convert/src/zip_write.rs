//! Zip archives, written member by member; sizes and checksums are filled in afterwards, so nothing is read twice.
//!
//! Every member has the zip64 field, as `numpy.savez` writes it: nobody knows how large a member becomes.
//! Times are 1980-01-01, so that equal content gives equal bytes.
//!
//! Source: PKWARE, APPNOTE.TXT 6.3.10.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::DeflateEncoder;

use crate::error::ConvertError;
use crate::sink::Sink;

/// The members so far.
#[derive(Default)]
pub(crate) struct ZipWriter {
    directory: Vec<u8>,
    count: u64,
}

/// A member being written.
pub(crate) struct ZipMember {
    name: String,
    header_at: u64,
    crc: crc32fast::Hasher,
    content_bytes: u64,
    stored_bytes: u64,
    deflate: Option<DeflateEncoder<Vec<u8>>>,
}

/// 1980-01-01, 00:00: the time (two bytes of zeros), then the date.
const TIME: [u8; 4] = [0, 0, 0x21, 0];

/// Where checksum and sizes stand in a local header.
const CRC_AT: u64 = 14;

/// The part of a local header before the name.
const HEADER_BYTES: u64 = 30;

impl ZipWriter {
    /// Begins a member.
    pub(crate) fn begin(
        &mut self,
        sink: &mut Sink<'_>,
        name: &str,
        deflate: bool,
    ) -> Result<ZipMember, ConvertError> {
        let member = ZipMember {
            name: name.to_owned(),
            header_at: sink.position(),
            crc: crc32fast::Hasher::new(),
            content_bytes: 0,
            stored_bytes: 0,
            deflate: deflate.then(|| DeflateEncoder::new(Vec::new(), Compression::default())),
        };
        let Ok(name_bytes) = u16::try_from(name.len()) else {
            let problem = format!(
                "has {} bytes, and a zip archive's names end at 65535",
                name.len()
            );
            let at = name.to_owned();
            return Err(ConvertError::Request { at, problem });
        };
        let mut header = b"PK\x03\x04".to_vec();
        header.extend(member.shared(0));
        // Both sizes are in the zip64 field.
        header.extend([0xff; 8]);
        header.extend(name_bytes.to_le_bytes());
        header.extend(20u16.to_le_bytes());
        header.extend(name.as_bytes());
        header.extend(zip64(&[0, 0]));
        sink.write(&header)?;
        Ok(member)
    }

    /// Ends a member: fills checksum and sizes in.
    pub(crate) fn end(
        &mut self,
        sink: &mut Sink<'_>,
        mut member: ZipMember,
    ) -> Result<(), ConvertError> {
        if let Some(encoder) = member.deflate.take() {
            let rest = encoder.finish().expect("writing to memory does not fail");
            sink.write(&rest)?;
            member.stored_bytes += rest.len() as u64;
            // For `shared`: deflated all the same.
            member.deflate = Some(DeflateEncoder::new(Vec::new(), Compression::none()));
        }
        let crc = member.crc.clone().finalize();
        let sizes = zip64(&[member.content_bytes, member.stored_bytes]);
        sink.overwrite(member.header_at + CRC_AT, &crc.to_le_bytes())?;
        sink.overwrite(
            member.header_at + HEADER_BYTES + member.name.len() as u64,
            &sizes,
        )?;
        let entry = &mut self.directory;
        entry.extend(b"PK\x01\x02\x2d\x00");
        entry.extend(member.shared(crc));
        entry.extend([0xff; 8]);
        entry.extend((member.name.len() as u16).to_le_bytes());
        let sizes = zip64(&[member.content_bytes, member.stored_bytes, member.header_at]);
        entry.extend((sizes.len() as u16).to_le_bytes());
        entry.extend([0; 10]); // no comment, disk 0, no attributes
        entry.extend([0xff; 4]);
        entry.extend(member.name.as_bytes());
        entry.extend(sizes);
        self.count += 1;
        Ok(())
    }

    /// Writes the directory.
    pub(crate) fn finish(self, sink: &mut Sink<'_>) -> Result<(), ConvertError> {
        let at = sink.position();
        let len = self.directory.len() as u64;
        sink.write(&self.directory)?;
        let wide = self.count >= 0xffff || at + len >= 0xffff_ffff;
        if wide {
            let mut end = b"PK\x06\x06".to_vec();
            end.extend(44u64.to_le_bytes());
            end.extend([0x2d, 0, 0x2d, 0]);
            end.extend([0; 8]);
            for number in [self.count, self.count, len, at] {
                end.extend(number.to_le_bytes());
            }
            end.extend(b"PK\x06\x07\0\0\0\0");
            end.extend((at + len).to_le_bytes());
            end.extend(1u32.to_le_bytes());
            sink.write(&end)?;
        }
        let narrow = |number: u64, max: u64| if wide { max } else { number };
        let count = (narrow(self.count, 0xffff) as u16).to_le_bytes();
        let mut end = b"PK\x05\x06\0\0\0\0".to_vec();
        end.extend(count);
        end.extend(count);
        end.extend((narrow(len, 0xffff_ffff) as u32).to_le_bytes());
        end.extend((narrow(at, 0xffff_ffff) as u32).to_le_bytes());
        end.extend([0; 2]);
        sink.write(&end)
    }
}

impl ZipMember {
    /// Writes the next bytes of the content.
    pub(crate) fn write(&mut self, sink: &mut Sink<'_>, bytes: &[u8]) -> Result<(), ConvertError> {
        self.crc.update(bytes);
        self.content_bytes += bytes.len() as u64;
        let Some(encoder) = &mut self.deflate else {
            self.stored_bytes += bytes.len() as u64;
            return sink.write(bytes);
        };
        let written: io::Result<()> = encoder.write_all(bytes);
        written.expect("writing to memory does not fail");
        let ready = encoder.get_mut();
        self.stored_bytes += ready.len() as u64;
        sink.write(ready)?;
        ready.clear();
        Ok(())
    }

    /// What local header and directory have in common: version, flags, method, time, checksum.
    fn shared(&self, crc: u32) -> Vec<u8> {
        // Names are UTF-8: bit 11, where they are not ASCII.
        let flags: u16 = if self.name.is_ascii() { 0 } else { 1 << 11 };
        let method: u16 = if self.deflate.is_some() { 8 } else { 0 };
        let mut bytes = vec![0x2d, 0];
        bytes.extend(flags.to_le_bytes());
        bytes.extend(method.to_le_bytes());
        bytes.extend(TIME);
        bytes.extend(crc.to_le_bytes());
        bytes
    }
}

/// The extra field with wide numbers.
fn zip64(numbers: &[u64]) -> Vec<u8> {
    let mut field = 1u16.to_le_bytes().to_vec();
    field.extend((numbers.len() as u16 * 8).to_le_bytes());
    field.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    field
}
