"""Cells that a student deleted or copied, or whose metadata were changed: nbgrader's preprocessor, with its gaps closed."""
from nbformat import from_dict
from nbgrader import utils
from nbgrader.preprocessors import OverwriteCells


class PutBack(OverwriteCells):
    """Each cell has the purpose and the points that the gradebook says, whatever the notebook says.

    nbgrader puts a missing test back after its answer, and stops if that answer is missing too. Here such a test goes to
    the end of the notebook: an answer that has only lost its metadata is defined by then, and gets its points.
    """

    def preprocess_cell(self, cell, resources, cell_index):
        source = self.gradebook.find_notebook(self.notebook_id, self.assignment_id)
        points = {graded.name: graded.max_score for graded in source.grade_cells + source.task_cells}
        if (name := cell.metadata.get("nbgrader", {}).get("grade_id")) in {known.name for known in source.source_cells}:
            cell.metadata.nbgrader.update(
                grade=name in {graded.name for graded in source.grade_cells},
                task=name in {task.name for task in source.task_cells},
                solution=name in {answer.name for answer in source.solution_cells}, points=points.get(name, 0))
        cell, resources = super().preprocess_cell(cell, resources, cell_index)
        if "nbgrader" in cell.metadata and "grade_id" not in cell.metadata.nbgrader:
            del cell.metadata["nbgrader"]  # a copied cell; later nbgrader would ask for its grade_id
        return cell, resources

    def add_missing_grade_cells(self, nb, resources):
        source = self.gradebook.find_notebook(self.notebook_id, self.assignment_id)
        points = {cell.name: cell.max_score for cell in source.grade_cells}
        written = {cell.name for cell in source.solution_cells}
        here = {cell.metadata.nbgrader["grade_id"] for cell in nb.cells if utils.is_grade(cell) or utils.is_solution(cell)}
        for before, cell in zip(source.source_cells, source.source_cells[1:]):
            if cell.name in points and cell.name not in here and before.name not in here and before.name not in points:
                nb.cells.append(from_dict(self.missing_cell_transform(cell, points[cell.name], is_solution=cell.name in written)))
        return super().add_missing_grade_cells(nb, resources)
