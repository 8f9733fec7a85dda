#pragma once
/// Aligned columns. On a narrow terminal the widest shrinkable columns are cut until a row fits;
/// when that is not enough, those that may be dropped are left out, the last one first.

#include <string>
#include <vector>

#include "output.hpp"

namespace shmctl {

struct Cell {
  std::string text;
  Style style = Style::plain;
};

enum class Align {
  left,
  right
};

struct Column {
  std::string title;
  Align align = Align::left;
  bool shrinks = false;  ///< May be cut, with an ellipsis, on a narrow terminal.
  bool drops = false;    ///< May be left out when cutting is not enough.
};

class Table {
 public:
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

  /// REQUIRES: as many cells as columns.
  void add(std::vector<Cell> row) { rows_.push_back(std::move(row)); }
  /// A row without styles.
  void add_plain(std::vector<std::string> texts);
  [[nodiscard]] bool empty() const noexcept { return rows_.empty(); }

  /// The heading and the rows, one line each; cut to `width` columns unless that is 0.
  [[nodiscard]] std::vector<std::string> lines(int width, bool colour) const;
  /// The lines to stdout, as wide as the terminal.
  void print() const;

 private:
  /// Width of each column, 0 for one that is left out.
  [[nodiscard]] std::vector<std::size_t> widths(std::size_t limit) const;
  [[nodiscard]] std::vector<std::size_t> full_widths() const;
  void drop_columns(std::vector<std::size_t>& widths, std::size_t limit) const;
  void cut_columns(std::vector<std::size_t>& widths, std::size_t limit) const;
  [[nodiscard]] std::string line(const std::vector<Cell>& row,
                                 const std::vector<std::size_t>& widths, bool colour) const;

  std::vector<Column> columns_;
  std::vector<std::vector<Cell>> rows_;
};

/// Characters that `text` (UTF-8) takes on a terminal; wide ones are counted as one.
[[nodiscard]] std::size_t display_width(std::string_view text);
/// At most `width` characters of `text`, the last an ellipsis if any were cut.
[[nodiscard]] std::string cut_text(std::string_view text, std::size_t width);

}  // namespace shmctl
