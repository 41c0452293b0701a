//! What tables and files of a server are like: each row of 64 bytes is half words that come again, half values that do
//! not. A compressor saves about half of it; another row never has the same bytes.

use crate::filler::Random;

const WORD_BYTES: usize = 8;
const ROW_BYTES: usize = 64;
const COLUMNS: [&[u8; WORD_BYTES]; 8] =
    [b"customer", b"shipped ", b"invoiced", b"returned", b"2026-11-", b"00000000", b"EUR net ", b"pending "];

/// Writes rows over all of it.
pub fn fill(bytes: &mut [u8], random: &mut Random) {
    for row in bytes.chunks_mut(ROW_BYTES) {
        let mut choice = random.next() >> 16;
        for (index, word) in row.chunks_exact_mut(WORD_BYTES).enumerate() {
            if index % 2 == 0 {
                word.copy_from_slice(COLUMNS[(choice % 8) as usize]);
                choice >>= 3;
            } else {
                word.copy_from_slice(&random.next().to_le_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_a_row_are_words_and_half_of_it_is_like_no_other() {
        let mut bytes = vec![0; 8 << 10];
        fill(&mut bytes, &mut Random::new(3));
        let words: Vec<&[u8]> = bytes.chunks(WORD_BYTES).collect();
        let is_column = |word: &&&[u8]| COLUMNS.iter().any(|column| column.as_slice() == **word);
        assert_eq!(words.iter().filter(is_column).count(), 512);
        let mut values: Vec<&&[u8]> = words.iter().filter(|word| !is_column(word)).collect();
        values.sort_unstable();
        values.dedup();
        assert_eq!(values.len(), 512);
    }
}
