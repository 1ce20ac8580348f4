"""The words by which lists of instructions are recognised, in the languages that models commonly answer in.

Each is an alternation for a regular expression that ignores case.
"""

_QUESTION_LABELS = {
    "en": "questions?|instructions?|requests?|tasks?|prompts?|quer(?:y|ies)|exercises?|items?|q",
    "es": "preguntas?|instrucci(?:ón|ones)|tareas?|solicitud(?:es)?|petici(?:ón|ones)",
    "fr": "consignes?|demandes?|tâches?|requêtes?",
    "de": "fragen?|aufgaben?|anweisung(?:en)?|anfragen?",
    "pt": "perguntas?|instruç(?:ão|ões)|tarefas?|pedidos?",
    "it": "domand[ae]|richiest[ae]|compit[oi]|istruzion[ei]",
    "ru": "вопросы?|задани[ея]|запросы?|инструкци[яи]|задачи?",
    "zh": "问题|問題|指令|请求|請求|任务|任務|题目|題目|问|問",
    "ja": "質問|指示|課題|依頼|リクエスト",
    "ko": "질문|요청|지시|과제",
    "ar": "(?:ال)?سؤال|(?:ال)?طلب|(?:ال)?مهمة|(?:ال)?تعليمات",
    "hi": "प्रश्न|सवाल",
    "vi": "câu hỏi|yêu cầu",
    "tr": "soru|görev|istek",
}

_ANSWER_LABELS = {
    "en": (
        "(?:sample |expected |model |suggested |correct )?(?:answers?|responses?|solutions?)|explanation|rationale|a"
    ),
    "es": "respuestas?|soluci(?:ón|ones)",
    "fr": "réponses?|solutions?",
    "de": "antwort(?:en)?|lösung(?:en)?",
    "pt": "respostas?|soluç(?:ão|ões)",
    "it": "rispost[ae]|soluzion[ei]",
    "ru": "ответы?|решени[ея]",
    "zh": "答案|回答|答",
    "ja": "解答|答え",
    "ko": "답변|정답|답",
    "ar": "(?:ال)?إجابة|(?:ال)?جواب",
    "hi": "उत्तर",
    "vi": "(?:câu )?trả lời|đáp án",
    "tr": "cevap|yanıt",
}

# How a remark to the asker begins, before or after the list.
_CHATTER = {
    "en": (
        "(?:sure|certainly|of course|absolutely|okay|ok|great|no problem)(?= *[,!.:;—–-]| here| i )|here(?: are|"
        "'s| is)|"
        "(?:the following|below) (?:are|is)|these (?:questions|requests|instructions|tasks|prompts)|"
        "(?:i )?hope (?:this|these)|(?:please )?let me know|feel free|if you (?:need|want|would like) (?:more|"
        "me|any|help)|"
        "would you like me|i (?:can|could) also|note:"
    ),
    "es": (
        "claro|por supuesto|aquí (?:están|tienes|hay)|a continuación|estas (?:preguntas|son)|espero que|si necesitas"
    ),
    "fr": (
        "bien sûr|certainement|voici|ci-dessous|ces (?:questions|demandes)|j'espère|n'hésitez pas|"
        "si vous (?:avez|souhaitez)"
    ),
    "de": (
        "natürlich|gerne|selbstverständlich|klar|hier sind|im folgenden|diese fragen|ich hoffe|lass mich wissen|wenn du"
    ),
    "pt": "claro|com certeza|aqui estão|a seguir|estas perguntas|espero que|se precisar",
    "it": "certo|certamente|ecco|di seguito|queste domande|spero che|fammi sapere|se hai bisogno",
    "ru": "конечно|хорошо|вот |ниже|эти вопросы|надеюсь|если (?:вам|нужно)|дайте знать",
    "zh": "当然|當然|好的|以下|这里有|這裡有|下面|希望|如果(?:您|你)?(?:需要|还有)|如需",
    "ja": "もちろん|承知|はい、|以下|これらの|必要であれば|ご不明",
    "ko": "물론|네,|다음은|아래는|필요하시면|도움이 되",
    "ar": "بالتأكيد|بالطبع|حسن[اًا]+|إليك|فيما يلي|آمل|أتمنى|إذا كنت",
}


def _alternation(by_language: dict[str, str]) -> str:
    return "(?:" + "|".join(by_language.values()) + ")"


QUESTION_LABEL = _alternation(_QUESTION_LABELS)
ANSWER_LABEL = _alternation(_ANSWER_LABELS)
CHATTER = _alternation(_CHATTER)
